// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes every output bit.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Best logit first; equal ones by id, so that the order is total.
struct BetterLogit {
  absl::Span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// Sixteen at a time, which the compiler turns into vectors; NaN when one of them is.
float MaxOrNan(absl::Span<const float> logits) {
  constexpr size_t kLanes = 16;
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

absl::StatusOr<int32_t> ArgMax(absl::Span<const float> logits) {
  const float max = MaxOrNan(logits);
  if (!std::isfinite(max)) {
    return absl::InternalError("the model computed logits that are not numbers");
  }
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
}

double LogSumExp(absl::Span<const float> logits, float max) {
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - max);
  return max + std::log(sum);
}

// Fills scratch.order with all ids, the best `count` of them sorted at the front.
void SortBest(absl::Span<const float> logits, size_t count, SamplerScratch& scratch) {
  scratch.order.resize(logits.size());
  std::iota(scratch.order.begin(), scratch.order.end(), 0);
  count = std::min(count, logits.size());
  std::partial_sort(scratch.order.begin(), scratch.order.begin() + static_cast<int64_t>(count),
                    scratch.order.end(), BetterLogit{logits});
}

void ApplyPenalties(absl::Span<float> logits, const SamplingParams& params,
                    const TokenCounts& counts) {
  if (params.repetition_penalty != 1.0f) {
    for (const auto& [id, seen] : counts.seen) {
      float& logit = logits[id];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
  }
  for (const auto& [id, count] : counts.generated) {
    logits[id] -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
  }
}

// The best tokens whose probabilities reach top_p together, and no others; sorted. Looks at few
// first and at four times more until they suffice.
void KeepNucleus(absl::Span<const float> logits, double total, float max,
                 const SamplingParams& params, size_t limit, SamplerScratch& scratch) {
  for (size_t count = std::min<size_t>(limit, 64);; count = std::min(limit, count * 4)) {
    SortBest(logits, count, scratch);
    double sum = 0;
    size_t kept = 0;
    while (kept < count && sum < params.top_p * total) {
      sum +=
          std::exp((static_cast<double>(logits[scratch.order[kept]]) - max) / params.temperature);
      ++kept;
    }
    if (sum >= params.top_p * total || count == limit) {
      scratch.order.resize(std::max<size_t>(kept, 1));
      return;
    }
  }
}

// Candidates after top-k, top-p and min-p, in an order that depends on the logits alone.
void Filter(absl::Span<const float> logits, float max, const SamplingParams& params,
            SamplerScratch& scratch) {
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - max) / params.temperature);
  };
  size_t limit = logits.size();
  if (params.top_k > 0) limit = std::min<size_t>(limit, params.top_k);
  if (limit < logits.size()) {
    SortBest(logits, limit, scratch);
    scratch.order.resize(limit);
  } else {
    scratch.order.resize(logits.size());
    std::iota(scratch.order.begin(), scratch.order.end(), 0);
  }
  if (params.top_p < 1.0f) {
    double total = 0;
    for (int32_t id : scratch.order) total += weight(id);
    KeepNucleus(logits, total, max, params, limit, scratch);
  }
  if (params.min_p > 0.0f) {
    std::erase_if(scratch.order, [&](int32_t id) { return weight(id) < params.min_p; });
  }
  scratch.weights.clear();
  for (int32_t id : scratch.order) scratch.weights.push_back(weight(id));
}

int32_t Draw(double uniform, const SamplerScratch& scratch) {
  const double total = std::accumulate(scratch.weights.begin(), scratch.weights.end(), 0.0);
  double left = uniform * total;
  size_t last_possible = 0;
  for (size_t i = 0; i < scratch.weights.size(); ++i) {
    if (scratch.weights[i] <= 0) continue;
    last_possible = i;
    left -= scratch.weights[i];
    if (left < 0) break;
  }
  return scratch.order[last_possible];
}

}  // namespace

bool UsesPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.frequency_penalty != 0.0f ||
         params.presence_penalty != 0.0f;
}

double CounterUniform(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  const uint64_t bits = Mix(Mix(seed + kGolden) + (position + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

absl::StatusOr<Sampled> Sample(absl::Span<float> logits, const SamplingParams& params,
                               const TokenCounts& counts, int64_t position,
                               SamplerScratch& scratch) {
  ASSIGN_OR_RETURN(int32_t best, ArgMax(logits));
  Sampled sampled;
  std::vector<float> unmodified;
  if (params.top_logprobs >= 0) {
    const double norm = LogSumExp(logits, logits[best]);
    const auto logprob = [&](int32_t id) {
      return TokenLogprob{id, static_cast<float>(logits[id] - norm)};
    };
    SampledLogprob report;
    SortBest(logits, params.top_logprobs, scratch);
    for (int32_t i = 0; i < params.top_logprobs && i < static_cast<int32_t>(logits.size()); ++i) {
      report.top.push_back(logprob(scratch.order[i]));
    }
    sampled.logprob = std::move(report);
    unmodified.assign(logits.begin(), logits.end());
    for (float& value : unmodified) value = static_cast<float>(value - norm);
  }
  for (const auto& [id, bias] : params.logit_bias) logits[id] += bias;
  if (UsesPenalties(params)) ApplyPenalties(logits, params, counts);
  if (!params.logit_bias.empty() || UsesPenalties(params)) {
    ASSIGN_OR_RETURN(best, ArgMax(logits));
  }
  if (params.temperature == 0.0f) {
    sampled.token_id = best;
  } else {
    Filter(logits, logits[best], params, scratch);
    sampled.token_id = Draw(CounterUniform(params.seed, position), scratch);
  }
  if (sampled.logprob) {
    sampled.logprob->chosen = {sampled.token_id, unmodified[sampled.token_id]};
  }
  return sampled;
}

}  // namespace rempart::worker
