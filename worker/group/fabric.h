// SPDX-License-Identifier: Apache-2.0
// What the links between the ranks of a group do, measured before weights are loaded, and what that
// will cost each token.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/comm/communicator.h"

namespace rempart::worker {

struct FabricFigures {
  int32_t all_reduce_microseconds = 0;  // of 4 KiB; median
  int32_t mib_per_second = 0;           // of an all-reduce of 1 MiB; best
};

// Runs all-reduces on the ranks of this pod, one thread each; every pod of the group calls it at
// the same point. The figures are rank 0's view of this pod. Zeros for one rank.
absl::StatusOr<FabricFigures> MeasureFabric(
    const std::vector<std::unique_ptr<Communicator>>& communicators);

// What the ranks of a group gather and send for a token.
struct TokenTraffic {
  int64_t layers = 0;
  int64_t hidden = 0;
  int tensor = 1;  // ranks of each stage
  int stages = 1;
};

// A decode step of one sequence: two all-reduces of `hidden` floats per layer where ranks share
// layers, one message from stage to stage, and one gather of the logits.
int32_t MicrosecondsPerToken(const FabricFigures& figures, const TokenTraffic& traffic);

// The least that any rank of the group can hold, agreed on by all: `mine` of this pod.
absl::StatusOr<int32_t> AgreeOnLeast(
    const std::vector<std::unique_ptr<Communicator>>& communicators, int32_t mine);

}  // namespace rempart::worker
