// SPDX-License-Identifier: Apache-2.0
// How the leader cuts a step for the stages of a pipeline. Pure.
#pragma once

#include <cstdint>

#include "worker/model/step_batch.h"

namespace rempart::worker {

// Fewer tokens take about as long as so many: the weights have to be read either way.
inline constexpr int64_t kLeastMicroBatchOnCpu = 32;
inline constexpr int64_t kLeastMicroBatchOnGpu = 256;

// For StepBatch::micro_batch_tokens. Of M micro-batches in P stages, M / (M + P - 1) of the time is
// not spent waiting; but each reads the weights of its stage anew, so that small ones gain nothing.
// 0 for one stage, and for a step of less than twice `least_tokens`.
int32_t MicroBatchTokens(const StepBatch& batch, int stages, int64_t least_tokens);

}  // namespace rempart::worker
