// SPDX-License-Identifier: Apache-2.0
// Draws the likeliest tokens of a step on the CPU, with all threads of the pool: the engine's
// sampler (worker/engine/sampler.h) reads one row of logits after the other on one thread, which is
// a thirtieth of a step of sixteen sequences where a vocabulary has 262,144 tokens.
#pragma once

#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/device/thread_pool.h"
#include "worker/model/step_batch.h"

namespace rempart::worker {

// Of slices that want logits and for whose draw nothing but the largest one matters: temperature 0,
// no bias, no penalties, no mask, no log-probabilities. Draws what the sampler would, and says so
// in `drawn` [num_wanting]; the others' rows stay as they are. `logits` [num_wanting,
// vocabulary_size]; both as of ModelRunner::Forward, with nothing to be done where `drawn` is
// empty. Called by the pool's caller.
void DrawGreedy(const StepBatch& batch, absl::Span<const float> logits, int64_t vocabulary_size,
                const kernels::Ops& ops, ThreadPool& pool, absl::Span<DrawnToken> drawn);

}  // namespace rempart::worker
