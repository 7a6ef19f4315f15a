// SPDX-License-Identifier: Apache-2.0
#include "worker/model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include "tests/worker/model/whole_model.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr char kStories[] = "tests/goldens/stories/stories260K.f32.gguf";

std::vector<int32_t> Ids(simdjson::dom::element element) {
  std::vector<int32_t> ids;
  for (int64_t id : element.get_array()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

class TransformerTiers : public ::testing::TestWithParam<const char*> {};

TEST_P(TransformerTiers, ContinuesStoriesExactlyAsTheGoldens) {
  const kernels::Ops* ops = kernels::FindOps(GetParam());
  if (ops == nullptr) ops = &kernels::ReferenceOps();  // a tier that this machine lacks
  WholeModel model(kStories, *ops, /*exact=*/true);
  ASSERT_TRUE(model.ok());
  simdjson::dom::parser parser;
  auto goldens = parser.load("tests/goldens/stories/stories260K.llamacpp_greedy.json");
  int cases = 0;
  for (auto item : goldens["cases"].get_array()) {
    const std::vector<int32_t> tokens = Ids(item["tokens"]);
    EXPECT_EQ(model.Greedy(Ids(item["prompt_tokens"]), tokens.size()), tokens);
    ++cases;
  }
  EXPECT_EQ(cases, 4);
}

INSTANTIATE_TEST_SUITE_P(All, TransformerTiers,
                         ::testing::Values("reference", "baseline", "avx2", "avx512"));

TEST(Transformer, LogitsDoNotDependOnTheBatchNorOnTheCut) {
  WholeModel model(kStories, kernels::BestOps(), /*exact=*/true);
  ASSERT_TRUE(model.ok());
  const std::vector<int32_t> ids = {1,   403, 407, 261, 378, 432, 383, 286, 261, 376,
                                    298, 315, 421, 395, 317, 426, 338, 401, 396, 267};
  const std::vector<int32_t> other = {1, 291, 376, 400, 428};
  const int64_t vocabulary = model.vocabulary();
  std::vector<float> whole(vocabulary), mixed(2 * vocabulary);
  StepBatch alone;
  alone.slices.push_back({ids, 0, model.table().subspan(0, 2), true});
  ASSERT_TRUE(model.transformer().Forward(alone, absl::MakeSpan(whole)).ok());

  // The same sequence in other blocks, cut after seven tokens, beside another sequence.
  const std::vector<int32_t> table = {9, 4}, other_table = {7};
  const absl::Span<const int32_t> all(ids);
  StepBatch first;
  first.slices.push_back({all.subspan(0, 7), 0, table, false});
  ASSERT_TRUE(model.transformer().Forward(first, {}).ok());
  StepBatch second;
  second.slices.push_back({other, 0, other_table, true});
  second.slices.push_back({all.subspan(7), 7, table, true});
  ASSERT_TRUE(model.transformer().Forward(second, absl::MakeSpan(mixed)).ok());
  EXPECT_EQ(whole, std::vector<float>(mixed.begin() + vocabulary, mixed.end()));
}

// A fork shares the full blocks of a prompt and has a copy of the last, partly filled one.
//   prompt: [ block 5 | block 6, 4 tokens ]   fork: [ block 5 | block 8, copied from 6 ]
TEST(Transformer, AForkOverACopiedBlockSaysWhatTheWholeSequenceSays) {
  WholeModel model(kStories, kernels::BestOps(), /*exact=*/false);
  ASSERT_TRUE(model.ok());
  const int64_t vocabulary = model.vocabulary();
  std::vector<int32_t> ids = {1,   403, 407, 261, 378, 432, 383, 286, 261, 376,
                              298, 315, 421, 395, 317, 426, 338, 401, 396, 267};
  const std::vector<int32_t> own = {5, 6}, forked = {5, 8}, left = {261}, right = {376};
  StepBatch prompt;
  prompt.slices.push_back({ids, 0, own, false});
  ASSERT_TRUE(model.transformer().Forward(prompt, {}).ok());
  std::vector<float> logits(2 * vocabulary), whole(vocabulary);
  StepBatch both;
  both.copies.push_back({6, 8});
  both.slices.push_back({left, 20, own, true});
  both.slices.push_back({right, 20, forked, true});
  ASSERT_TRUE(model.transformer().Forward(both, absl::MakeSpan(logits)).ok());
  for (const int32_t last : {left[0], right[0]}) {
    ids.push_back(last);
    StepBatch alone;
    alone.slices.push_back({ids, 0, model.table(), true});
    ASSERT_TRUE(model.transformer().Forward(alone, absl::MakeSpan(whole)).ok());
    const auto row = logits.begin() + (last == left[0] ? 0 : vocabulary);
    EXPECT_EQ(whole, std::vector<float>(row, row + vocabulary)) << last;
    ids.pop_back();
  }
  StepBatch wrong;
  wrong.copies.push_back({6, 64});
  EXPECT_THAT(std::string(model.transformer().Forward(wrong, {}).message()),
              HasSubstr("no KV block 64 to copy"));
}

TEST(Transformer, RefusesABatchThatItCannotHold) {
  WholeModel model(kStories, kernels::BestOps(), /*exact=*/true);
  ASSERT_TRUE(model.ok());
  std::vector<float> logits(model.vocabulary());
  const auto forward = [&](std::vector<int32_t> ids, int32_t position, std::vector<int32_t> table) {
    StepBatch batch;
    batch.slices.push_back({ids, position, table, true});
    return std::string(model.transformer().Forward(batch, absl::MakeSpan(logits)).message());
  };
  EXPECT_THAT(forward({512}, 0, {0}), HasSubstr("outside the vocabulary of 512"));
  EXPECT_THAT(forward({-1}, 0, {0}), HasSubstr("outside the vocabulary"));
  EXPECT_THAT(forward({1}, 0, {64}), HasSubstr("no KV block 64"));
  EXPECT_THAT(forward({1}, 16, {0}), HasSubstr("too short a block table"));
  EXPECT_THAT(forward(std::vector<int32_t>(513, 1), 0, std::vector<int32_t>(33, 0)),
              HasSubstr("a step of 513 tokens"));
}

}  // namespace
}  // namespace rempart::worker
