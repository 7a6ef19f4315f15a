// SPDX-License-Identifier: Apache-2.0
// From logits to a token. Filters apply in this order: logit bias, penalties, mask, temperature,
// top-k, top-p, min-p, draw. The draw walks the kept tokens in the order of their ids, and all that
// decides is computed as kernels/sample_math.h says: a device draws the same token from the same
// logits (kernels/cuda/sample.cu). The random number is a function of (seed, position) alone, so
// that a sequence continued elsewhere, or in another batch, draws the same tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/engine/sequence.h"
#include "worker/model/sampling.h"

namespace rempart::worker {

// How often tokens occurred; kept only for sequences whose penalties are on.
class TokenCounts {
 public:
  void AddPrompt(int32_t token_id) { Of(token_id); }
  void AddGenerated(int32_t token_id) { ++Of(token_id).generated; }
  // In the order in which they came.
  absl::Span<const TokenCount> tokens() const { return tokens_; }

 private:
  TokenCount& Of(int32_t token_id) {
    const auto [found, is_new] = places_.try_emplace(token_id, tokens_.size());
    if (is_new) tokens_.push_back({token_id, 0});
    return tokens_[found->second];
  }
  std::vector<TokenCount> tokens_;
  absl::flat_hash_map<int32_t, size_t> places_;
};

struct Sampled {
  int32_t token_id = 0;
  std::optional<SampledLogprob> logprob;
};

// Each token once, with the sum of its biases.
void MergeBiases(SamplingParams& params);

struct KeptToken {
  int32_t id = 0;
  float weight = 0;  // of the best token's 1
};

// Reused between calls, so that sampling does not allocate in the steady state.
struct SamplerScratch {
  // Which one decides about speed alone.
  const kernels::Ops* ops = &kernels::BestOps();
  std::vector<uint64_t> ranks;
  std::vector<KeptToken> kept;
  std::vector<float> weights;
  std::vector<uint64_t> sums;
  std::vector<float> unmodified;
  std::vector<int32_t> allowed;  // tokens, by a mask
  std::vector<float> allowed_logits;
};

// Changes `logits` [vocabulary_size]. Log-probabilities are those of the unmodified logits.
// Internal when the logits hold no finite maximum; FailedPrecondition when only those do that the
// mask does not allow.
absl::StatusOr<Sampled> Sample(absl::Span<float> logits, const SliceSampling& sampling,
                               SamplerScratch& scratch);

// Of a token that the model has drawn by these parameters.
absl::StatusOr<Sampled> SampledFrom(const DrawnToken& drawn, const SamplingParams& params);

}  // namespace rempart::worker
