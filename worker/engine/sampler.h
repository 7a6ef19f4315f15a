// SPDX-License-Identifier: Apache-2.0
// From logits to a token. Filters apply in this order: logit bias, penalties, temperature, top-k,
// top-p, min-p, draw. The random number is a function of (seed, position) alone, so that a sequence
// continued elsewhere, or in another batch, draws the same tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/engine/sequence.h"

namespace rempart::worker {

// How often tokens occurred; kept only for sequences whose penalties are on.
struct TokenCounts {
  absl::flat_hash_map<int32_t, int32_t> generated;
  absl::flat_hash_map<int32_t, bool> seen;  // in prompt or generated: repetition penalty
};

struct Sampled {
  int32_t token_id = 0;
  std::optional<SampledLogprob> logprob;
};

bool UsesPenalties(const SamplingParams& params);

// Reused between calls, so that sampling does not allocate in the steady state.
struct SamplerScratch {
  std::vector<int32_t> order;
  std::vector<double> weights;
};

// Changes `logits` [vocabulary_size]. `position` counts generated tokens, from 0. Log-probabilities
// are those of the unmodified logits. Internal when the logits hold no finite maximum.
absl::StatusOr<Sampled> Sample(absl::Span<float> logits, const SamplingParams& params,
                               const TokenCounts& counts, int64_t position,
                               SamplerScratch& scratch);

// Uniform in [0, 1), a function of its arguments.
double CounterUniform(uint64_t seed, uint64_t position);

}  // namespace rempart::worker
