// SPDX-License-Identifier: Apache-2.0
// How the leader cuts a step for the stages of a pipeline. Pure.
#pragma once

#include <cstdint>

#include "worker/model/step_batch.h"

namespace rempart::worker {

// For StepBatch::micro_batch_tokens. Of M micro-batches in P stages, M / (M + P - 1) of the time is
// not spent waiting; but each reads the weights of its stage anew, so that small ones gain nothing.
// 0 for one stage, and for a step that is too small to be cut.
int32_t MicroBatchTokens(const StepBatch& batch, int stages);

}  // namespace rempart::worker
