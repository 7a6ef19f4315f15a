// SPDX-License-Identifier: Apache-2.0
// What a member says of its GPUs on Join, in the words that a status shows. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/group/v1/group.pb.h"

namespace rempart::op {

struct GpuFaultReport {
  std::string gpu = {};  // "NVIDIA H200 GPU-5fb9a..."
  int32_t xid = 0;       // 0: none was reported
  std::string meaning = {};
  std::string advice = {};
  absl::Time at = {};  // by the member's clock
  bool is_broken = false;

  bool operator==(const GpuFaultReport&) const = default;
};

struct GpusReport {
  std::vector<std::string> gpus = {};  // as in the fault, in the order of the member's ranks
  // What is wrong short of a fault, or not known; empty: nothing.
  std::string concern = {};
  std::optional<GpuFaultReport> fault = {};

  bool operator==(const GpusReport&) const = default;
};

// Whatever the member sends: numbers of GPUs that are not there name none.
GpusReport GpusFromWire(const group::v1::GpuReport& wire);

}  // namespace rempart::op
