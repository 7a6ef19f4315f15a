// SPDX-License-Identifier: Apache-2.0
// What /metrics shows. Names: rempart_operator_*.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace rempart::op {

struct BlamedMember {
  std::string pod;
  std::string node;
  int32_t rank = 0;
};

struct GroupFigures {
  std::string group;  // "namespace/model-0"
  std::map<std::string, double> seconds_in_state;
  // The rest only of a group of several pods.
  bool of_several = false;
  int64_t epochs_ended = 0;
  int64_t recoveries = 0;
  double last_recovery_seconds = 0;
  double last_detection_seconds = 0;
  std::map<int32_t, int64_t> aborts_by_rank;                 // -1: nobody is blamed
  std::vector<std::pair<double, int64_t>> recovery_buckets;  // upper bound, cumulative count
  double recovery_seconds_sum = 0;
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
  int64_t api_calls = 0;
  int64_t api_writes = 0;
  int64_t lease_writes = 0;
  std::vector<GroupFigures> groups;
};

// Prometheus text format 0.0.4. Pure.
std::string MetricsText(const OperatorFigures& figures, const std::string& version);

}  // namespace rempart::op
