// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/sample_math.h"

namespace rempart::worker {
namespace {

using kernels::FixedWeight;
using kernels::TokenRank;

// So many at a time, which the compiler turns into vectors.
constexpr size_t kLanes = 16;

// NaN when one of them is.
float MaxOrNan(absl::Span<const float> logits) {
  std::array<float, kLanes> max;
  std::array<int32_t, kLanes> has_nan = {};
  max.fill(-std::numeric_limits<float>::infinity());
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      max[lane] = x > max[lane] ? x : max[lane];
      has_nan[lane] |= x != x ? 1 : 0;
    }
  }
  bool found_nan = std::any_of(has_nan.begin(), has_nan.end(), [](int32_t n) { return n != 0; });
  float best = *std::max_element(max.begin(), max.end());
  for (const float x : logits.subspan(whole)) {
    found_nan |= std::isnan(x);
    best = std::max(best, x);
  }
  return found_nan ? std::numeric_limits<float>::quiet_NaN() : best;
}

absl::Status NotNumbers() {
  return absl::InternalError("the model computed logits that are not numbers");
}

absl::StatusOr<int32_t> ArgMax(absl::Span<const float> logits) {
  const float max = MaxOrNan(logits);
  if (!std::isfinite(max)) return NotNumbers();
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
}

// weights[id] = e^((logits[id] - max) / temperature).
void Weigh(absl::Span<const float> logits, float max, float temperature,
           std::vector<float>& weights) {
  weights.resize(logits.size());
  for (size_t i = 0; i < logits.size(); i += kLanes) {
    const size_t count = std::min(kLanes, logits.size() - i);
    std::array<float, kLanes> lanes = {};
    std::copy_n(logits.data() + i, count, lanes.begin());
    for (float& lane : lanes) lane = kernels::ExpOfNegative((lane - max) / temperature);
    std::copy_n(lanes.begin(), count, weights.data() + i);
  }
}

uint64_t SumOf(absl::Span<const float> weights) {
  uint64_t sum = 0;
  for (const float weight : weights) sum += FixedWeight(weight);
  return sum;
}

// Fills scratch.order with all ids, the best `count` of them sorted at the front.
void SortBest(absl::Span<const float> logits, size_t count, SamplerScratch& scratch) {
  scratch.order.resize(logits.size());
  std::iota(scratch.order.begin(), scratch.order.end(), 0);
  count = std::min(count, logits.size());
  std::partial_sort(scratch.order.begin(), scratch.order.begin() + static_cast<int64_t>(count),
                    scratch.order.end(), [logits](int32_t a, int32_t b) {
                      return TokenRank(logits[a], a) > TokenRank(logits[b], b);
                    });
}

void Penalise(absl::Span<float> logits, const SamplingParams& params,
              absl::Span<const TokenCount> counts) {
  for (const TokenCount& count : counts) {
    float& logit = logits[count.token_id];
    logit = kernels::PenalisedLogit(logit, params.repetition_penalty, params.frequency_penalty,
                                    params.presence_penalty, static_cast<float>(count.generated));
  }
}

// The rank of the worst of the best tokens that reach top_p of `total` together. Looks at few first
// and at four times more until they suffice.
uint64_t WorstOfNucleus(absl::Span<const float> logits, uint64_t total, float top_p,
                        SamplerScratch& scratch) {
  const uint64_t wanted = kernels::NucleusWeight(top_p, total);
  for (size_t count = std::min<size_t>(logits.size(), 64);;
       count = std::min(logits.size(), count * 4)) {
    SortBest(logits, count, scratch);
    uint64_t sum = 0;
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = scratch.order[i];
      sum += FixedWeight(scratch.weights[id]);
      if (sum >= wanted) return TokenRank(logits[id], id);
    }
    if (count == logits.size()) return 0;
  }
}

void DropBelow(uint64_t worst, absl::Span<const float> logits, std::vector<float>& weights) {
  for (size_t id = 0; id < logits.size(); ++id) {
    if (TokenRank(logits[id], static_cast<int64_t>(id)) < worst) weights[id] = 0;
  }
}

// Leaves in scratch.weights those of the tokens that top-k, top-p and min-p keep.
void Filter(absl::Span<const float> logits, float max, const SamplingParams& params,
            SamplerScratch& scratch) {
  std::vector<float>& weights = scratch.weights;
  Weigh(logits, max, params.temperature, weights);
  const auto top_k = static_cast<size_t>(std::max(params.top_k, 0));
  if (top_k > 0 && top_k < logits.size()) {
    SortBest(logits, top_k, scratch);
    const int32_t worst = scratch.order[top_k - 1];
    DropBelow(TokenRank(logits[worst], worst), logits, weights);
  }
  if (params.top_p < 1.0f) {
    DropBelow(WorstOfNucleus(logits, SumOf(weights), params.top_p, scratch), logits, weights);
  }
  if (params.min_p > 0.0f) {
    for (float& weight : weights) weight = weight < params.min_p ? 0 : weight;
  }
}

int32_t Draw(absl::Span<const float> weights, const SliceSampling& sampling) {
  const uint64_t target = kernels::DrawTarget(
      sampling.params->seed, static_cast<uint64_t>(sampling.position), SumOf(weights));
  uint64_t sum = 0;
  size_t id = 0;
  while ((sum += FixedWeight(weights[id])) <= target) ++id;
  return static_cast<int32_t>(id);
}

}  // namespace

void MergeBiases(SamplingParams& params) {
  auto& biases = params.logit_bias;
  std::stable_sort(biases.begin(), biases.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  size_t kept = 0;
  for (size_t i = 0; i < biases.size(); ++i) {
    if (kept > 0 && biases[kept - 1].first == biases[i].first) {
      biases[kept - 1].second += biases[i].second;
    } else {
      biases[kept++] = biases[i];
    }
  }
  biases.resize(kept);
}

absl::StatusOr<Sampled> Sample(absl::Span<float> logits, const SliceSampling& sampling,
                               SamplerScratch& scratch) {
  const SamplingParams& params = *sampling.params;
  ASSIGN_OR_RETURN(int32_t best, ArgMax(logits));
  const float original_max = logits[best];
  const bool is_modified = !params.logit_bias.empty() || params.has_penalties();
  Sampled sampled;
  uint64_t original_sum = 0;
  const auto logprob = [&](int32_t id, float logit) {
    return TokenLogprob{id, kernels::LogProbability(logit, original_max, original_sum)};
  };
  if (params.top_logprobs >= 0) {
    Weigh(logits, original_max, 1.0f, scratch.weights);
    original_sum = SumOf(scratch.weights);
    sampled.logprob.emplace();
    const size_t top = std::min<size_t>(params.top_logprobs, logits.size());
    if (top > 0) SortBest(logits, top, scratch);
    for (size_t i = 0; i < top; ++i) {
      const int32_t id = scratch.order[i];
      sampled.logprob->top.push_back(logprob(id, logits[id]));
    }
    if (is_modified) scratch.unmodified.assign(logits.begin(), logits.end());
  }
  if (is_modified) {
    for (const auto& [id, bias] : params.logit_bias) logits[id] += bias;
    if (params.has_penalties()) Penalise(logits, params, sampling.counts);
    ASSIGN_OR_RETURN(best, ArgMax(logits));
  }
  sampled.token_id = best;
  if (params.temperature != 0.0f) {
    Filter(logits, logits[best], params, scratch);
    sampled.token_id = Draw(scratch.weights, sampling);
  }
  if (sampled.logprob) {
    const float logit =
        is_modified ? scratch.unmodified[sampled.token_id] : logits[sampled.token_id];
    sampled.logprob->chosen = logprob(sampled.token_id, logit);
  }
  return sampled;
}

absl::StatusOr<Sampled> SampledFrom(const DrawnToken& drawn, const SamplingParams& params) {
  if (drawn.token_id < 0) return NotNumbers();
  Sampled sampled;
  sampled.token_id = drawn.token_id;
  if (params.top_logprobs >= 0) {
    sampled.logprob = SampledLogprob{{drawn.token_id, drawn.logprob}, {}};
  }
  return sampled;
}

}  // namespace rempart::worker
