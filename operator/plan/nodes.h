// SPDX-License-Identifier: Apache-2.0
// The nodes of the cluster as a plan sees them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace rempart::op {

// Amounts by resource name: "cpu" in thousandths, all others whole ("memory" in bytes).
using Amounts = std::map<std::string, int64_t>;

struct TaintObservation {
  std::string key;
  std::string value;
  std::string effect;

  bool operator==(const TaintObservation&) const = default;
};

struct NodeObservation {
  std::string name;
  std::map<std::string, std::string> labels;
  std::vector<TaintObservation> taints;
  bool ready = true;
  bool cordoned = false;
  Amounts allocatable;
  // Requests of all pods that are bound to it or promised to it, those of this Model included.
  Amounts requested;
  int32_t pods = 0;

  bool operator==(const NodeObservation&) const = default;
};

}  // namespace rempart::op
