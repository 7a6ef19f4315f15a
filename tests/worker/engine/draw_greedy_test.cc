// SPDX-License-Identifier: Apache-2.0
#include "worker/model/draw_greedy.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "worker/engine/sampler.h"

namespace rempart::worker {
namespace {

// More than one piece, and no whole number of them.
constexpr int64_t kVocabulary = 100'003;
constexpr int32_t kToken = 7;

// Slices that all want logits, each with a draw of its own.
struct Step {
  explicit Step(size_t count) : params(count), draws(count), logits(count * kVocabulary) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (float& logit : logits) logit = normal(random);
    for (size_t i = 0; i < count; ++i) {
      params[i].temperature = 0.0f;
      draws[i].params = &params[i];
      SequenceSlice& slice = batch.slices.emplace_back();
      slice.token_ids = absl::MakeConstSpan(&kToken, 1);
      slice.wants_logits = true;
      slice.sampling = &draws[i];
    }
  }
  absl::Span<float> Row(size_t i) {
    return absl::MakeSpan(logits).subspan(i * kVocabulary, kVocabulary);
  }
  std::vector<DrawnToken> Draw() {
    std::vector<DrawnToken> drawn(draws.size());
    ThreadPool pool({.threads = 3});
    DrawGreedy(batch, logits, kVocabulary, kernels::BestOps(), pool, absl::MakeSpan(drawn));
    return drawn;
  }
  int32_t Sampled(size_t i) {
    SamplerScratch scratch;
    std::vector<float> row(Row(i).begin(), Row(i).end());
    return Sample(absl::MakeSpan(row), draws[i], scratch)->token_id;
  }

  std::vector<SamplingParams> params;
  std::vector<SliceSampling> draws;
  std::vector<float> logits;
  StepBatch batch;
};

TEST(DrawGreedy, DrawsWhatTheSamplerDraws) {
  Step step(5);
  step.Row(1)[0] = 50.0f;                // the first
  step.Row(2)[kVocabulary - 1] = 50.0f;  // the last, in a short piece
  step.Row(3)[70'000] = 50.0f;           // of equals the first, in another piece
  step.Row(3)[40'000] = 50.0f;
  for (float& logit : step.Row(4)) logit = -std::numeric_limits<float>::infinity();
  step.Row(4)[99'000] = -3.0f;
  const std::vector<DrawnToken> drawn = step.Draw();
  for (size_t i = 0; i < drawn.size(); ++i) {
    EXPECT_TRUE(drawn[i].is_drawn) << i;
    EXPECT_EQ(drawn[i].token_id, step.Sampled(i)) << i;
  }
  EXPECT_EQ(drawn[1].token_id, 0);
  EXPECT_EQ(drawn[2].token_id, kVocabulary - 1);
  EXPECT_EQ(drawn[3].token_id, 40'000);
  EXPECT_EQ(drawn[4].token_id, 99'000);
}

TEST(DrawGreedy, LogitsThatAreNotNumbersAreSaidToBe) {
  Step step(3);
  step.Row(0)[90'000] = std::numeric_limits<float>::quiet_NaN();
  step.Row(1)[2] = std::numeric_limits<float>::infinity();
  const std::vector<DrawnToken> drawn = step.Draw();
  EXPECT_TRUE(drawn[0].is_drawn);
  EXPECT_EQ(drawn[0].token_id, -1);
  EXPECT_EQ(drawn[1].token_id, -1);
  EXPECT_EQ(drawn[2].token_id, step.Sampled(2));
  EXPECT_FALSE(SampledFrom(drawn[0], step.params[0]).ok());
}

TEST(DrawGreedy, LeavesRowsThatNeedMoreThanTheLargestLogit) {
  Step step(8);
  const std::vector<uint32_t> mask(MaskWords(kVocabulary), 1u);
  step.params[0].temperature = 0.7f;
  step.params[1].logit_bias = {{3, 1.0f}};
  step.params[2].repetition_penalty = 1.1f;
  step.params[3].top_logprobs = 0;
  step.draws[4].mask = mask;
  step.batch.slices[5].sampling = nullptr;
  step.batch.slices[6].wants_logits = false;
  // The last slice's row is the one behind the sixth's, for the seventh has none.
  step.Row(6)[1234] = 50.0f;
  const std::vector<DrawnToken> drawn = step.Draw();
  for (size_t row = 0; row < 6; ++row) EXPECT_FALSE(drawn[row].is_drawn) << row;
  EXPECT_TRUE(drawn[6].is_drawn);
  EXPECT_EQ(drawn[6].token_id, 1234);
}

}  // namespace
}  // namespace rempart::worker
