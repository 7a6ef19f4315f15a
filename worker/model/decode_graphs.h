// SPDX-License-Identifier: Apache-2.0
// The graphs of decode batches. The first batch of a shape is queued as it is, for kernels may be
// loaded with it, which no recording allows; the second is recorded, and started as all that come
// after.
//
// Invariants:
//  1. There are at most kMost graphs: each takes memory of the device, out of its reserve. The one
//     that was started longest ago makes room.
//  2. Which batch is recorded follows from the shapes alone. Ranks that meet the same shapes record
//     the same batches: a collective has to be in a graph on all ranks, or on none.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "worker/device/device.h"

namespace rempart::worker {

// What a graph is fixed to.
struct DecodeShape {
  int64_t slices = 0;
  int64_t max_splits = 0;
  bool samples = false;
  bool follows = false;

  auto operator<=>(const DecodeShape&) const = default;
};

class DecodeGraphs {
 public:
  static constexpr int64_t kMost = 64;

  // `has_peers`: the work holds collectives. The device outlives it.
  DecodeGraphs(Device& device, bool has_peers) : device_(device), has_peers_(has_peers) {}

  // Queues the work of `queue`, which is the same for one shape each time. Where the device records
  // no graph, what is new is queued as it is from then on, until Clear; of several ranks that is
  // DeviceUnavailable, for the others record theirs.
  absl::Status Start(const DecodeShape& shape, absl::FunctionRef<absl::Status()> queue);
  // Of nothing that runs.
  void Clear();

 private:
  struct Decode {
    std::unique_ptr<DeviceGraph> graph;  // null: queued once so far
    int64_t started = 0;                 // the last time, in starts of any
  };

  absl::Status Record(Decode& decode, absl::FunctionRef<absl::Status()> queue);
  void MakeRoom();

  Device& device_;
  const bool has_peers_;
  std::map<DecodeShape, Decode> decodes_;
  int64_t graphs_ = 0;  // of decodes_
  int64_t starts_ = 0;
  bool records_ = true;
};

}  // namespace rempart::worker
