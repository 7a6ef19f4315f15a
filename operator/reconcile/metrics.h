// SPDX-License-Identifier: Apache-2.0
// What /metrics shows. Names: rempart_operator_*.
#pragma once

#include <cstdint>
#include <string>

namespace rempart::op {

struct OperatorFigures {
  bool leading = false;
  int64_t reconciles = 0;
  int64_t reconcile_errors = 0;
  int queued = 0;
  int models = 0;
  int models_ready = 0;
  int workers_joined = 0;
  int routers_joined = 0;
  int64_t lists = 0;
  int64_t watches = 0;
};

// Prometheus text format 0.0.4. Pure.
std::string MetricsText(const OperatorFigures& figures, const std::string& version);

}  // namespace rempart::op
