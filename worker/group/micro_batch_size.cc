// SPDX-License-Identifier: Apache-2.0
#include "worker/group/micro_batch_size.h"

#include <algorithm>

namespace rempart::worker {
namespace {

// More than this wait little less, and cost messages.
constexpr int64_t kMostPerStage = 4;
// Tiles of kernels take whole ones.
constexpr int64_t kUnit = 16;

}  // namespace

int32_t MicroBatchTokens(const StepBatch& batch, int stages, int64_t least_tokens) {
  if (stages == 1) return 0;
  int64_t tokens = 0;
  for (const SequenceSlice& slice : batch.slices) {
    tokens += static_cast<int64_t>(slice.token_ids.size());
  }
  const int64_t count = std::min(tokens / least_tokens, kMostPerStage * stages);
  if (count < 2) return 0;
  const int64_t size = (tokens + count - 1) / count;
  return static_cast<int32_t>((size + kUnit - 1) / kUnit * kUnit);
}

}  // namespace rempart::worker
