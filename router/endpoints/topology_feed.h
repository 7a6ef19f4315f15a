// SPDX-License-Identifier: Apache-2.0
// Keeps the router's topology current, on one thread of its own: from a file that is read again
// when it changes, or from the operator's Watch stream, dialled again with back-off. While neither
// can be read, the last copy stays.
#pragma once

#include <functional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "common/tls/tls.h"
#include "router/endpoints/topology.h"

namespace rempart::router {

// What clients asked of one model.
struct ModelDemandFigures {
  std::string model_name;
  int32_t requests_held = 0;
  int32_t requests_running = 0;
  int64_t prompt_tokens_total = 0;
  int64_t completion_tokens_total = 0;
};

struct TopologyFeedOptions {
  std::string file;     // exactly one of file and address
  std::string address;  // "unix:/path" or "host:port"
  TlsConfig tls = {};
  std::string router_id = {};
};

class TopologyFeed {
 public:
  // Both functions are called on the feed's thread. `demand` is asked once a second.
  TopologyFeed(TopologyFeedOptions options, std::function<void(TopologyPtr)> publish,
               std::function<std::vector<ModelDemandFigures>()> demand);

 private:
  void FollowFile(std::stop_token stop);
  void FollowStream(std::stop_token stop);
  // One stream, from its hello to its end; whether it brought a snapshot.
  bool WatchOnce(std::stop_token stop);

  const TopologyFeedOptions options_;
  const std::function<void(TopologyPtr)> publish_;
  const std::function<std::vector<ModelDemandFigures>()> demand_;
  std::jthread thread_;  // last: starts when all is constructed
};

}  // namespace rempart::router
