// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "kernels/sample_math.h"

namespace rempart::worker {
namespace {

// Tokens drawn in `count` positions from the same logits.
std::map<int32_t, int> DrawMany(const std::vector<float>& logits, const SamplingParams& params,
                                int count = 20'000) {
  std::map<int32_t, int> drawn;
  SamplerScratch scratch;
  for (int position = 0; position < count; ++position) {
    std::vector<float> copy = logits;
    auto sampled = Sample(absl::MakeSpan(copy), {&params, {}, position}, scratch);
    EXPECT_TRUE(sampled.ok());
    ++drawn[sampled->token_id];
  }
  return drawn;
}

// Logits of given probabilities.
std::vector<float> LogitsOf(std::vector<double> probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::set<int32_t> Keys(const std::map<int32_t, int>& drawn) {
  std::set<int32_t> keys;
  for (const auto& [id, count] : drawn) keys.insert(id);
  return keys;
}

const std::vector<double> kProbabilities = {0.1, 0.4, 0.05, 0.3, 0.15};

TEST(Sampler, DrawsWithTheModelsProbabilities) {
  const auto drawn = DrawMany(LogitsOf(kProbabilities), {.seed = 3});
  for (size_t id = 0; id < kProbabilities.size(); ++id) {
    // Five standard deviations of a binomial.
    const double p = kProbabilities[id];
    EXPECT_NEAR(drawn.at(id) / 20'000.0, p, 5 * std::sqrt(p * (1 - p) / 20'000)) << id;
  }
}

TEST(Sampler, TemperatureSquaresTheOddsAtOneHalf) {
  const auto drawn = DrawMany(LogitsOf({0.2, 0.8}), {.temperature = 0.5f, .seed = 3});
  EXPECT_NEAR(drawn.at(0) / 20'000.0, 0.04 / 0.68, 0.01);
}

TEST(Sampler, FiltersKeepWhatTheyName) {
  const auto logits = LogitsOf(kProbabilities);
  EXPECT_EQ(Keys(DrawMany(logits, {.temperature = 0})), (std::set<int32_t>{1}));
  EXPECT_EQ(Keys(DrawMany(logits, {.top_k = 2})), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Keys(DrawMany(logits, {.top_p = 0.6f})), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Keys(DrawMany(logits, {.top_p = 0.75f})), (std::set<int32_t>{1, 3, 4}));
  EXPECT_EQ(Keys(DrawMany(logits, {.top_p = 1e-6f})), (std::set<int32_t>{1}));
  // 0.3 of the best, 0.4, is 0.12.
  EXPECT_EQ(Keys(DrawMany(logits, {.min_p = 0.3f})), (std::set<int32_t>{1, 3, 4}));
  // top_p counts what top_k left: 0.4 / 0.7 of two.
  EXPECT_EQ(Keys(DrawMany(logits, {.top_p = 0.5f, .top_k = 2})), (std::set<int32_t>{1}));
}

TEST(Sampler, TopPOfAFlatDistributionLooksBeyondItsFirstGuess) {
  const std::vector<float> flat(1000, 0.0f);
  EXPECT_EQ(Keys(DrawMany(flat, {.top_p = 0.5f})).size(), 500u);
}

TEST(Sampler, BiasForbidsAndForces) {
  const auto logits = LogitsOf(kProbabilities);
  SamplingParams params;
  params.logit_bias = {{1, -100.0f}};
  EXPECT_EQ(Keys(DrawMany(logits, params)).count(1), 0u);
  params.logit_bias = {{2, 100.0f}};
  EXPECT_EQ(Keys(DrawMany(logits, params)), (std::set<int32_t>{2}));
}

TEST(Sampler, AMaskAllowsWhatItNames) {
  const auto logits = LogitsOf(kProbabilities);
  SamplerScratch scratch;
  const auto draw = [&](uint32_t mask, const SamplingParams& params) {
    std::set<int32_t> drawn;
    for (int position = 0; position < 300; ++position) {
      std::vector<float> copy = logits;
      const auto sampled = Sample(absl::MakeSpan(copy),
                                  {&params, {}, position, absl::MakeConstSpan(&mask, 1)}, scratch);
      EXPECT_TRUE(sampled.ok()) << sampled.status();
      drawn.insert(sampled->token_id);
    }
    return drawn;
  };
  EXPECT_EQ(draw(0b10101, {}), (std::set<int32_t>{0, 2, 4}));
  EXPECT_EQ(draw(0b10101, {.temperature = 0}), (std::set<int32_t>{4}));
  EXPECT_EQ(draw(0xffffffffu, {}).size(), 5u);
  EXPECT_EQ(draw(0b00100, {}), (std::set<int32_t>{2}));
  // The filters see what the mask left.
  EXPECT_EQ(draw(0b10101, {.top_k = 2}), (std::set<int32_t>{0, 4}));
  EXPECT_EQ(draw(0b10101, {.top_p = 0.4f}), (std::set<int32_t>{4}));
  EXPECT_EQ(draw(0b10101, {.min_p = 0.5f}), (std::set<int32_t>{0, 4}));
  // A bias counts for what is allowed, and allows nothing.
  SamplingParams biased{.temperature = 0};
  biased.logit_bias = {{1, 100.0f}, {2, 50.0f}};
  EXPECT_EQ(draw(0b10101, biased), (std::set<int32_t>{2}));
}

TEST(Sampler, AMaskThatAllowsNothingPossibleIsToldFromLogitsThatAreNotNumbers) {
  SamplerScratch scratch;
  const SamplingParams params;
  const float infinity = std::numeric_limits<float>::infinity();
  const auto code = [&](std::vector<float> logits, uint32_t mask) {
    return Sample(absl::MakeSpan(logits), {&params, {}, 0, absl::MakeConstSpan(&mask, 1)}, scratch)
        .status()
        .code();
  };
  EXPECT_EQ(code({1, 2, 3}, 0b101), absl::StatusCode::kOk);
  EXPECT_EQ(code({1, 2, 3}, 0), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code({1, 2, 3}, ~0b111u), absl::StatusCode::kFailedPrecondition) << "behind the last";
  EXPECT_EQ(code({1, -infinity, 3}, 0b010), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code({1, std::nanf(""), 3}, 0b101), absl::StatusCode::kInternal) << "though hidden";
  EXPECT_EQ(code({1, infinity, 3}, 0b101), absl::StatusCode::kInternal);
  EXPECT_EQ(SampledFrom({true, -2, 0}, params).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(SampledFrom({true, -1, 0}, params).status().code(), absl::StatusCode::kInternal);
}

TEST(Sampler, PenaltiesFollowTheirFormulas) {
  SamplerScratch scratch;
  TokenCounts counts;
  counts.AddPrompt(1);
  for (int i = 0; i < 3; ++i) counts.AddGenerated(0);
  const auto adjusted = [&](SamplingParams params) {
    std::vector<float> logits = {2.0f, -1.0f, 0.5f};
    params.temperature = 0;
    EXPECT_TRUE(Sample(absl::MakeSpan(logits), {&params, counts.tokens(), 0}, scratch).ok());
    return logits;
  };
  EXPECT_EQ(adjusted({.frequency_penalty = 0.5f}), (std::vector<float>{0.5f, -1.0f, 0.5f}));
  EXPECT_EQ(adjusted({.presence_penalty = 0.5f}), (std::vector<float>{1.5f, -1.0f, 0.5f}));
  EXPECT_EQ(adjusted({.repetition_penalty = 2.0f}), (std::vector<float>{1.0f, -2.0f, 0.5f}));
}

TEST(Sampler, LogprobsAreThoseOfTheUnmodifiedModel) {
  std::vector<float> logits = LogitsOf(kProbabilities);
  SamplerScratch scratch;
  SamplingParams params{.temperature = 0, .top_logprobs = 2};
  params.logit_bias = {{0, 50.0f}};
  const auto sampled = Sample(absl::MakeSpan(logits), {&params, {}, 0}, scratch);
  EXPECT_EQ(sampled->token_id, 0);
  EXPECT_NEAR(sampled->logprob->chosen.logprob, std::log(0.1), 1e-5);
  ASSERT_EQ(sampled->logprob->top.size(), 2u);
  EXPECT_EQ(sampled->logprob->top[0].token_id, 1);
  EXPECT_NEAR(sampled->logprob->top[1].logprob, std::log(0.3), 1e-5);
}

TEST(Sampler, TheSameSeedAndPositionGiveTheSameNumberAndOthersDoNot) {
  EXPECT_EQ(kernels::UniformOf(1, 2), kernels::UniformOf(1, 2));
  std::set<double> seen;
  double sum = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint64_t position = 0; position < 100; ++position) {
      const double u = kernels::UniformOf(seed, position);
      EXPECT_GE(u, 0.0);
      EXPECT_LT(u, 1.0);
      seen.insert(u);
      sum += u;
    }
  }
  EXPECT_EQ(seen.size(), 10'000u);
  EXPECT_NEAR(sum / 10'000, 0.5, 0.015);
}

// The definition, one step after the other over all tokens.
int32_t DrawByDefinition(std::vector<float> logits, const SamplingParams& params,
                         int64_t position) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float max = logits[order[0]];
  const auto weight = [&](int32_t id) {
    return kernels::ExpOfNegative((logits[id] - max) / params.temperature);
  };
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < order.size()) {
    order.resize(static_cast<size_t>(params.top_k));
  }
  if (params.top_p < 1.0f) {
    uint64_t total = 0, sum = 0;
    for (const int32_t id : order) total += kernels::FixedWeight(weight(id));
    size_t kept = 0;
    while (sum < kernels::NucleusWeight(params.top_p, total)) {
      sum += kernels::FixedWeight(weight(order[kept++]));
    }
    order.resize(kept);
  }
  std::erase_if(order, [&](int32_t id) { return weight(id) < params.min_p; });
  std::sort(order.begin(), order.end());
  uint64_t total = 0, sum = 0;
  for (const int32_t id : order) total += kernels::FixedWeight(weight(id));
  const uint64_t target = kernels::DrawTarget(params.seed, static_cast<uint64_t>(position), total);
  for (const int32_t id : order) {
    if ((sum += kernels::FixedWeight(weight(id))) > target) return id;
  }
  return -1;
}

// Whole words of it, single tokens, or many; and what it leaves of the logits, something at least.
std::vector<uint32_t> RandomMask(std::mt19937& random, std::vector<float>& logits) {
  std::vector<uint32_t> mask(static_cast<size_t>(MaskWords(static_cast<int64_t>(logits.size()))));
  const uint32_t kind = random() % 3;
  for (uint32_t& word : mask) {
    word = kind == 0 ? 0u : kind == 1 ? static_cast<uint32_t>(random()) : random() % 2 * ~0u;
  }
  size_t possible = random() % logits.size();
  while (!std::isfinite(logits[possible])) possible = (possible + 1) % logits.size();
  mask[possible / 32] |= 1u << (possible % 32);
  for (size_t id = 0; id < logits.size(); ++id) {
    if ((mask[id / 32] >> (id % 32) & 1) == 0) {
      logits[id] = -std::numeric_limits<float>::infinity();
    }
  }
  return mask;
}

// Peaked, flat and full of ties, with tokens that are forbidden, over more than one stretch and
// less than one vector.
TEST(Sampler, DrawsWhatTheDefinitionSays) {
  std::mt19937 random(5);
  SamplerScratch scratch;
  for (const size_t size : {1, 5, 63, 64, 65, 300, 2048, 5001}) {
    for (const float deviation : {0.0f, 0.01f, 1.0f, 4.0f, 40.0f}) {
      std::normal_distribution<float> normal(0.0f, deviation + 1e-9f);
      std::vector<float> logits(size);
      for (float& logit : logits) {
        // Many are equal; there is one zero alone.
        logit = std::round(normal(random) * 64) / 64 + 0.0f;
        if (random() % 16 == 0) logit = -std::numeric_limits<float>::infinity();
      }
      logits[random() % size] = 3.0f;
      for (int trial = 0; trial < 60; ++trial) {
        SamplingParams params;
        params.seed = static_cast<uint64_t>(trial);
        const float temperatures[] = {1e-30f, 1e-3f, 0.7f, 1.0f, 2.0f, 1e30f};
        const float top_ps[] = {1.0f, 1e-6f, 0.5f, 0.9f, 0.999f, 0.9999999f};
        const int32_t top_ks[] = {0, 0, 1, 40, 200, 1'000'000};
        const float min_ps[] = {0.0f, 0.0f, 1e-4f, 0.1f, 1.0f};
        params.temperature = temperatures[random() % 6];
        params.top_p = top_ps[random() % 6];
        params.top_k = top_ks[random() % 6];
        params.min_p = min_ps[random() % 5];
        std::vector<uint32_t> mask;
        std::vector<float> allowed = logits;
        if (trial % 2 == 1) mask = RandomMask(random, allowed);
        std::vector<float> copy = logits;
        const auto sampled = Sample(absl::MakeSpan(copy), {&params, {}, trial, mask}, scratch);
        ASSERT_TRUE(sampled.ok()) << sampled.status();
        ASSERT_EQ(sampled->token_id, DrawByDefinition(allowed, params, trial))
            << size << " tokens, deviation " << deviation << ", temperature " << params.temperature
            << ", top-p " << params.top_p << ", top-k " << params.top_k << ", min-p "
            << params.min_p;
      }
    }
  }
}

TEST(Sampler, AlternativesAreTheBestTokensInTheirOrder) {
  std::mt19937 random(6);
  SamplerScratch scratch;
  for (const size_t size : {1, 3, 64, 130, 3000}) {
    std::vector<float> logits(size);
    for (float& logit : logits) logit = static_cast<float>(random() % 50);
    std::vector<int32_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    const SamplingParams params{.temperature = 0, .top_logprobs = 20};
    const auto sampled = Sample(absl::MakeSpan(logits), {&params, {}, 0}, scratch);
    ASSERT_TRUE(sampled.ok());
    ASSERT_EQ(sampled->logprob->top.size(), std::min<size_t>(size, 20));
    for (size_t i = 0; i < sampled->logprob->top.size(); ++i) {
      EXPECT_EQ(sampled->logprob->top[i].token_id, order[i]) << "place " << i << " of " << size;
    }
  }
}

// Vocabularies that are, and are not, whole vectors; the best and what is not a number anywhere.
TEST(Sampler, TheBestTokenIsTheFirstOfTheLargestWhereverItIs) {
  SamplerScratch scratch;
  const SamplingParams greedy{.temperature = 0};
  for (const size_t size : {1, 2, 15, 16, 17, 33, 64, 67}) {
    for (size_t best = 0; best < size; ++best) {
      std::vector<float> logits(size, -5.0f);
      logits[best] = -1.0f;
      logits[size - 1] = -1.0f;
      const auto sampled = Sample(absl::MakeSpan(logits), {&greedy, {}, 0}, scratch);
      ASSERT_TRUE(sampled.ok()) << sampled.status();
      EXPECT_EQ(sampled->token_id, static_cast<int32_t>(best));
      logits[best] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_FALSE(Sample(absl::MakeSpan(logits), {&greedy, {}, 0}, scratch).ok());
    }
  }
}

TEST(Sampler, RefusesLogitsThatAreNotNumbers) {
  SamplerScratch scratch;
  const SamplingParams params;
  std::vector<float> logits = {1.0f, std::numeric_limits<float>::quiet_NaN(), 0.0f};
  EXPECT_EQ(Sample(absl::MakeSpan(logits), {&params, {}, 0}, scratch).status().code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace rempart::worker
