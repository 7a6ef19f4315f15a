// SPDX-License-Identifier: Apache-2.0
// A whole router process: its shards, the topology feed, the reload of API keys. Start opens
// everything or nothing; Stop drains.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "router/config/router_config.h"
#include "router/endpoints/topology_feed.h"
#include "router/http/shard.h"

namespace rempart::router {

class RouterProcess {
 public:
  // What a process has from its supervisor.
  struct Inheritance {
    std::vector<int>
        listeners;     // of OpenListeningSockets, owned from now on; empty: it opens its own
    int restarts = 0;  // crashed processes before this one
  };
  // InvalidArgument, NotFound: configuration; Unavailable, PermissionDenied: an address. `clock`
  // outlives the process. After a restart, clients' connections wait until it is known which models
  // there are, for 5 s at most.
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Start(RouterSettings settings,
                                                              const Clock* clock,
                                                              Inheritance inheritance);
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Start(RouterSettings settings,
                                                              const Clock* clock) {
    return Start(std::move(settings), clock, Inheritance());
  }
  ~RouterProcess();

  // Stops accepting, answers /readyz with 503, lets running requests finish until drain_timeout;
  // returns when all is done.
  void Stop();

  int port() const { return port_; }
  int health_port() const { return health_port_; }  // 0: not served

 private:
  RouterProcess(RouterSettings settings, const Clock* clock, Inheritance inheritance);

  absl::Status Open();
  absl::Status OpenShards();
  std::string MetricsText();
  std::vector<ModelDemandFigures> Demand();
  void ReloadKeys(std::stop_token stop);

  const RouterSettings settings_;
  const Inheritance inheritance_;
  Metrics metrics_;
  std::atomic<bool> stopping_ = false;
  std::unique_ptr<ApiKeyFile> keys_;
  ProcessContext context_;
  int port_ = 0;
  int health_port_ = 0;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::unique_ptr<TopologyFeed> feed_;
  std::jthread key_reload_;
};

}  // namespace rempart::router
