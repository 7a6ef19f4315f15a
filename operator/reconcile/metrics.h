// SPDX-License-Identifier: Apache-2.0
// What /metrics shows. Names: rempart_operator_*.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rempart::op {

struct BlamedMember {
  std::string pod;
  std::string node;
  int32_t rank = 0;
};

// Of a group of several pods.
struct GroupFigures {
  std::string group;  // "namespace/model-0"
  int64_t epochs_ended = 0;
  int64_t recoveries = 0;
  double last_recovery_seconds = 0;
  double last_detection_seconds = 0;
  std::vector<BlamedMember> blamed;  // for the end of the last epoch, and not back since
};

struct OperatorFigures {
  bool leading = false;
  int64_t reconciles = 0;
  int64_t reconcile_errors = 0;
  int queued = 0;
  int models = 0;
  int models_ready = 0;
  int workers_joined = 0;
  int64_t workers_redirected = 0;
  int routers_joined = 0;
  int64_t lists = 0;
  int64_t watches = 0;
  int64_t api_writes = 0;
  std::vector<GroupFigures> groups;
};

// Prometheus text format 0.0.4. Pure.
std::string MetricsText(const OperatorFigures& figures, const std::string& version);

}  // namespace rempart::op
