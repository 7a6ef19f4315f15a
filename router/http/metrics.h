// SPDX-License-Identifier: Apache-2.0
// What the router counts; names are part of its interface. Any thread.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <string>

#include "absl/time/time.h"

namespace rempart::router {

class Metrics {
 public:
  Metrics();

  // `route` is one of ours, never the path a client made up.
  void CountRequest(const std::string& route, int status);
  void CountTokens(const std::string& served_name, int64_t prompt, int64_t completion);
  void ObserveFirstToken(absl::Duration elapsed);
  void ObserveRequest(absl::Duration elapsed);
  void CountClientLeft();
  // Processes that crashed before this one.
  void SetRestarts(int restarts);

  struct Levels {
    int64_t connections = 0;
    int64_t requests_running = 0;
    int64_t requests_held = 0;
    int64_t groups_ready = 0;
    int64_t moves_total = 0;
  };
  // The text of /metrics; levels are set first.
  std::string Text(const Levels& levels);

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Counter>& tokens_;
  prometheus::Histogram& first_token_seconds_;
  prometheus::Histogram& request_seconds_;
  prometheus::Counter& clients_left_;
  prometheus::Gauge& connections_;
  prometheus::Gauge& running_;
  prometheus::Gauge& held_;
  prometheus::Gauge& groups_ready_;
  prometheus::Gauge& moves_;
  prometheus::Gauge& restarts_;
};

}  // namespace rempart::router
