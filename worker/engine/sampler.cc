// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/sample_math.h"

namespace rempart::worker {
namespace {

using kernels::FixedWeight;
using kernels::TokenRank;

// Sums of weights are kept for so many tokens at a time.
constexpr size_t kStretch = 2048;
// Of a pass that skips tokens: so many are looked at together.
constexpr size_t kLanes = 64;
// Top-p is looked for among so many of the best tokens first.
constexpr size_t kFirstGuess = 64;
// Then in buckets of logits, a thirty-second of the temperature wide. Behind the last one weights
// are zero.
constexpr size_t kBuckets = 1024;
constexpr float kBucketsPerTemperature = 32.0f;

absl::Status NotNumbers() {
  return absl::InternalError("the model computed logits that are not numbers");
}

absl::Status NothingAllowed() {
  return absl::FailedPreconditionError(
      "the model gives no token that this request's constraint allows a finite logit");
}

absl::StatusOr<int32_t> ArgMax(absl::Span<const float> logits, const kernels::Ops& ops) {
  const int64_t best = ops.argmax(logits.data(), static_cast<int64_t>(logits.size()));
  if (best < 0 || !std::isfinite(logits[static_cast<size_t>(best)])) return NotNumbers();
  return static_cast<int32_t>(best);
}

float WeightOf(float logit, float max, float temperature) {
  return kernels::ExpOfNegative((logit - max) / temperature);
}

// Fills scratch.weights, and scratch.sums with those of each stretch. Returns the sum of all.
uint64_t Weigh(absl::Span<const float> logits, float max, float temperature,
               SamplerScratch& scratch) {
  scratch.weights.resize(logits.size());
  scratch.sums.clear();
  uint64_t total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kStretch) {
    const size_t count = std::min(kStretch, logits.size() - begin);
    scratch.sums.push_back(scratch.ops->weigh(logits.data() + begin, static_cast<int64_t>(count),
                                              max, temperature, scratch.weights.data() + begin));
    total += scratch.sums.back();
  }
  return total;
}

// Calls visit(i) for every value that is at least `least()`, in order; most are passed by quickly.
template <class Least, class Visit>
void ForEachFrom(absl::Span<const float> values, size_t begin, const Least& least,
                 const Visit& visit) {
  for (; begin < values.size(); begin += kLanes) {
    const size_t count = std::min(kLanes, values.size() - begin);
    const float bound = least();
    if (count == kLanes) {
      int32_t found = 0;
      for (size_t lane = 0; lane < kLanes; ++lane) found |= values[begin + lane] >= bound ? 1 : 0;
      if (found == 0) continue;
    }
    for (size_t i = begin; i < begin + count; ++i) {
      if (values[i] >= least()) visit(i);
    }
  }
}

int32_t IdOf(uint64_t rank) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank));
}

// Fills scratch.ranks with those of the `count` best tokens, the best first.
void FindBest(absl::Span<const float> logits, size_t count, SamplerScratch& scratch) {
  std::vector<uint64_t>& ranks = scratch.ranks;
  ranks.clear();
  count = std::min(count, logits.size());
  if (count == 0) return;
  for (size_t id = 0; id < count; ++id) {
    ranks.push_back(TokenRank(logits[id], static_cast<int64_t>(id)));
  }
  // The worst of them is in front.
  std::make_heap(ranks.begin(), ranks.end(), std::greater<>());
  float worst = logits[IdOf(ranks.front())];
  ForEachFrom(
      logits, count, [&] { return worst; },
      [&](size_t id) {
        const uint64_t rank = TokenRank(logits[id], static_cast<int64_t>(id));
        if (rank < ranks.front()) return;
        std::pop_heap(ranks.begin(), ranks.end(), std::greater<>());
        ranks.back() = rank;
        std::push_heap(ranks.begin(), ranks.end(), std::greater<>());
        worst = logits[IdOf(ranks.front())];
      });
  std::sort_heap(ranks.begin(), ranks.end(), std::greater<>());
}

void Penalise(absl::Span<float> logits, const SamplingParams& params,
              absl::Span<const TokenCount> counts) {
  for (const TokenCount& count : counts) {
    float& logit = logits[count.token_id];
    logit = kernels::PenalisedLogit(logit, params.repetition_penalty, params.frequency_penalty,
                                    params.presence_penalty, static_cast<float>(count.generated));
  }
}

// The logits of the tokens that the mask allows, in the order of their ids, which scratch.allowed
// has: what is drawn from them is what would be drawn from all, were the others impossible. A word
// that allows nothing costs nothing.
absl::Span<const float> Restrict(absl::Span<const float> logits, absl::Span<const uint32_t> mask,
                                 SamplerScratch& scratch) {
  CHECK_EQ(static_cast<int64_t>(mask.size()), MaskWords(static_cast<int64_t>(logits.size())));
  scratch.allowed.resize(logits.size());
  scratch.allowed_logits.resize(logits.size());
  int32_t* const ids = scratch.allowed.data();
  float* const to = scratch.allowed_logits.data();
  size_t count = 0;
  for (size_t word = 0; word < mask.size(); ++word) {
    const size_t begin = word * 32;
    uint32_t bits = mask[word];
    if (logits.size() - begin < 32) bits &= (1u << (logits.size() - begin)) - 1;
    if (bits == ~0u) {
      for (size_t i = 0; i < 32; ++i) {
        ids[count + i] = static_cast<int32_t>(begin + i);
        to[count + i] = logits[begin + i];
      }
      count += 32;
      continue;
    }
    for (; bits != 0; bits &= bits - 1) {
      const size_t id = begin + static_cast<size_t>(std::countr_zero(bits));
      ids[count] = static_cast<int32_t>(id);
      to[count++] = logits[id];
    }
  }
  return absl::MakeConstSpan(to, count);
}

// Of the tokens that the mask allows.
absl::StatusOr<int32_t> ArgMaxAllowed(absl::Span<const float> logits, const kernels::Ops& ops) {
  const auto is_possible = [](float logit) {
    return logit != -std::numeric_limits<float>::infinity();
  };
  if (std::none_of(logits.begin(), logits.end(), is_possible)) return NothingAllowed();
  return ArgMax(logits, ops);
}

// scratch.kept becomes the tokens of scratch.ranks, by their ids.
void KeepRanks(absl::Span<const float> logits, float max, float temperature,
               SamplerScratch& scratch) {
  scratch.kept.clear();
  for (const uint64_t rank : scratch.ranks) {
    const int32_t id = IdOf(rank);
    scratch.kept.push_back({id, WeightOf(logits[id], max, temperature)});
  }
  std::sort(scratch.kept.begin(), scratch.kept.end(),
            [](const KeptToken& a, const KeptToken& b) { return a.id < b.id; });
}

// Cuts scratch.ranks, the best first, behind the one with which their weights reach `wanted`. False
// when all of them do not.
bool CutAt(uint64_t wanted, absl::Span<const float> logits, float max, float temperature,
           SamplerScratch& scratch) {
  uint64_t sum = 0;
  for (size_t i = 0; i < scratch.ranks.size(); ++i) {
    sum += FixedWeight(WeightOf(logits[IdOf(scratch.ranks[i])], max, temperature));
    if (sum < wanted) continue;
    scratch.ranks.resize(i + 1);
    return true;
  }
  return false;
}

// The rank of the token with which the weights of the best ones reach `wanted`, which all together
// do. From logits to buckets no order is lost.
uint64_t WorstOfNucleus(absl::Span<const float> logits, uint64_t wanted, float max,
                        float temperature, SamplerScratch& scratch) {
  const float scale =
      std::min(kBucketsPerTemperature / temperature, std::numeric_limits<float>::max());
  const auto bucket_of = [&](float logit) {
    return static_cast<size_t>(std::min((max - logit) * scale, static_cast<float>(kBuckets - 1)));
  };
  scratch.sums.assign(kBuckets, 0);
  for (size_t id = 0; id < logits.size(); ++id) {
    scratch.sums[bucket_of(logits[id])] += FixedWeight(scratch.weights[id]);
  }
  size_t bucket = 0;
  uint64_t before = 0;
  for (; before + scratch.sums[bucket] < wanted; ++bucket) before += scratch.sums[bucket];
  scratch.ranks.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (bucket_of(logits[id]) == bucket) {
      scratch.ranks.push_back(TokenRank(logits[id], static_cast<int64_t>(id)));
    }
  }
  std::sort(scratch.ranks.begin(), scratch.ranks.end(), std::greater<>());
  CutAt(wanted - before, logits, max, temperature, scratch);
  return scratch.ranks.back();
}

void KeepNucleus(absl::Span<const float> logits, float max, const SamplingParams& params,
                 SamplerScratch& scratch) {
  const uint64_t total = Weigh(logits, max, params.temperature, scratch);
  const uint64_t wanted = kernels::NucleusWeight(params.top_p, total);
  FindBest(logits, kFirstGuess, scratch);
  if (CutAt(wanted, logits, max, params.temperature, scratch)) {
    return KeepRanks(logits, max, params.temperature, scratch);
  }
  const uint64_t worst = WorstOfNucleus(logits, wanted, max, params.temperature, scratch);
  const float least = logits[IdOf(worst)];
  scratch.kept.clear();
  ForEachFrom(
      logits, 0, [&] { return least; },
      [&](size_t id) {
        if (TokenRank(logits[id], static_cast<int64_t>(id)) < worst) return;
        scratch.kept.push_back({static_cast<int32_t>(id), scratch.weights[id]});
      });
}

void KeepBest(absl::Span<const float> logits, float max, const SamplingParams& params,
              SamplerScratch& scratch) {
  FindBest(logits, static_cast<size_t>(params.top_k), scratch);
  if (params.top_p < 1.0f) {
    uint64_t total = 0;
    for (const uint64_t rank : scratch.ranks) {
      total += FixedWeight(WeightOf(logits[IdOf(rank)], max, params.temperature));
    }
    CutAt(kernels::NucleusWeight(params.top_p, total), logits, max, params.temperature, scratch);
  }
  KeepRanks(logits, max, params.temperature, scratch);
}

uint64_t TargetOf(const SliceSampling& sampling, uint64_t total) {
  return kernels::DrawTarget(sampling.params->seed, static_cast<uint64_t>(sampling.position),
                             total);
}

int32_t DrawKept(const SliceSampling& sampling, absl::Span<const KeptToken> kept) {
  uint64_t total = 0;
  for (const KeptToken& token : kept) total += FixedWeight(token.weight);
  const uint64_t target = TargetOf(sampling, total);
  uint64_t sum = 0;
  size_t i = 0;
  while ((sum += FixedWeight(kept[i].weight)) <= target) ++i;
  return kept[i].id;
}

// Of all tokens.
int32_t DrawAny(const SliceSampling& sampling, uint64_t total, const SamplerScratch& scratch) {
  const uint64_t target = TargetOf(sampling, total);
  uint64_t sum = 0;
  size_t stretch = 0;
  while (sum + scratch.sums[stretch] <= target) sum += scratch.sums[stretch++];
  size_t id = stretch * kStretch;
  while ((sum += FixedWeight(scratch.weights[id])) <= target) ++id;
  return static_cast<int32_t>(id);
}

int32_t DrawToken(absl::Span<const float> logits, float max, const SliceSampling& sampling,
                  SamplerScratch& scratch) {
  const SamplingParams& params = *sampling.params;
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    KeepBest(logits, max, params, scratch);
  } else if (params.top_p < 1.0f) {
    KeepNucleus(logits, max, params, scratch);
  } else {
    const uint64_t total = Weigh(logits, max, params.temperature, scratch);
    if (params.min_p <= 0.0f) return DrawAny(sampling, total, scratch);
    scratch.kept.clear();
    ForEachFrom(
        scratch.weights, 0, [&] { return params.min_p; },
        [&](size_t id) {
          scratch.kept.push_back({static_cast<int32_t>(id), scratch.weights[id]});
        });
    return DrawKept(sampling, scratch.kept);
  }
  if (params.min_p > 0.0f) {
    std::erase_if(scratch.kept,
                  [&](const KeptToken& token) { return token.weight < params.min_p; });
  }
  return DrawKept(sampling, scratch.kept);
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
  ASSIGN_OR_RETURN(int32_t best, ArgMax(logits, *scratch.ops));
  const float original_max = logits[best];
  const bool is_modified = !params.logit_bias.empty() || params.has_penalties();
  Sampled sampled;
  uint64_t original_sum = 0;
  const auto logprob = [&](int32_t id, float logit) {
    return TokenLogprob{id, kernels::LogProbability(logit, original_max, original_sum)};
  };
  if (params.top_logprobs >= 0) {
    original_sum = Weigh(logits, original_max, 1.0f, scratch);
    sampled.logprob.emplace();
    FindBest(logits, static_cast<size_t>(params.top_logprobs), scratch);
    for (const uint64_t rank : scratch.ranks) {
      sampled.logprob->top.push_back(logprob(IdOf(rank), logits[IdOf(rank)]));
    }
    if (is_modified) scratch.unmodified.assign(logits.begin(), logits.end());
  }
  if (is_modified) {
    for (const auto& [id, bias] : params.logit_bias) logits[id] += bias;
    if (params.has_penalties()) Penalise(logits, params, sampling.counts);
  }
  absl::Span<const float> candidates = logits;
  if (!sampling.mask.empty()) {
    candidates = Restrict(logits, sampling.mask, scratch);
    ASSIGN_OR_RETURN(best, ArgMaxAllowed(candidates, *scratch.ops));
  } else if (is_modified) {
    ASSIGN_OR_RETURN(best, ArgMax(logits, *scratch.ops));
  }
  sampled.token_id = best;
  if (params.temperature != 0.0f) {
    sampled.token_id = DrawToken(candidates, candidates[best], sampling, scratch);
  }
  if (!sampling.mask.empty()) sampled.token_id = scratch.allowed[sampled.token_id];
  if (sampled.logprob) {
    const float logit =
        is_modified ? scratch.unmodified[sampled.token_id] : logits[sampled.token_id];
    sampled.logprob->chosen = logprob(sampled.token_id, logit);
  }
  return sampled;
}

absl::StatusOr<Sampled> SampledFrom(const DrawnToken& drawn, const SamplingParams& params) {
  if (drawn.token_id == -2) return NothingAllowed();
  if (drawn.token_id < 0) return NotNumbers();
  Sampled sampled;
  sampled.token_id = drawn.token_id;
  if (params.top_logprobs >= 0) {
    sampled.logprob = SampledLogprob{{drawn.token_id, drawn.logprob}, {}};
  }
  return sampled;
}

}  // namespace rempart::worker
