// SPDX-License-Identifier: Apache-2.0
// What the leader's engine runs its steps on, over the stages of a real model in one process.
#include "worker/group/group_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/model/rank_group.h"
#include "worker/group/micro_batch_size.h"

namespace rempart::worker {
namespace {

using ::testing::Each;

StepBatch BatchOfTokens(const std::vector<int32_t>& ids, const std::vector<int32_t>& table) {
  StepBatch batch;
  batch.slices.push_back({ids, 0, table, true});
  return batch;
}

TEST(MicroBatchTokens, CutsWhatIsLargeEnoughForTheStages) {
  struct Row {
    int tokens;
    int stages;
    int32_t expected;
  };
  const std::vector<int32_t> table(64);
  for (const Row& row : {Row{512, 1, 0}, Row{1, 2, 0}, Row{63, 2, 0}, Row{64, 2, 32},
                         Row{100, 2, 48}, Row{512, 2, 64}, Row{512, 4, 32}, Row{4096, 2, 512}}) {
    const std::vector<int32_t> ids(row.tokens, 1);
    EXPECT_EQ(MicroBatchTokens(BatchOfTokens(ids, table), row.stages, 32), row.expected)
        << row.tokens << " tokens, " << row.stages << " stages";
  }
  // Not the decodes of a whole batch, each of whose parts would read all weights.
  const std::vector<int32_t> many(511, 1), prompt(2048, 1);
  EXPECT_EQ(MicroBatchTokens(BatchOfTokens(many, table), 2, kLeastMicroBatchOnGpu), 0);
  EXPECT_EQ(MicroBatchTokens(BatchOfTokens(prompt, table), 2, kLeastMicroBatchOnGpu), 256);
}

// A rank that notes how it was told to cut its steps.
class NotingRank : public RankModel {
 public:
  explicit NotingRank(Transformer* transformer) : transformer_(transformer) {}
  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(transformer_->config().vocabulary);
  }
  absl::Status Begin(Communicator* communicator, int32_t) override {
    transformer_->SetCommunicator(communicator);
    return absl::OkStatus();
  }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken>) override {
    cuts.push_back(batch.micro_batch_tokens);
    return transformer_->Forward(batch, logits);
  }
  std::vector<int32_t> cuts;

 private:
  Transformer* const transformer_;
};

class PipelineOfThree : public testing::Test {
 protected:
  PipelineOfThree() {
    ModelConfig config = SmallConfig(4, 2, 16, 64, 96, 80);
    config.layers.resize(3);
    model_.emplace(config, kernels::DType::kQ8_0, 21);
    made_ = MakeRanks(model_->tensors(), model_->config(), false, {1, 3});
    communicators_ = CreateInProcess(3, {});
    for (int rank = 0; rank < 3; ++rank) {
      ranks_.push_back(std::make_unique<NotingRank>(made_[rank]->transformer.get()));
      EXPECT_TRUE(ranks_[rank]->Begin(communicators_[rank].get(), 0).ok());
      locals_.push_back({rank, ranks_[rank].get(), communicators_[rank].get(), &progress_[rank]});
    }
    threads_.emplace(std::vector<LocalRank>(locals_.begin() + 1, locals_.end()),
                     [this](int32_t, const absl::Status& status) {
                       fate_.End(std::string(status.message()), -1);
                     });
    GroupRunner::Options options;
    options.stages = 3;
    options.first = locals_[0];
    options.others = &*threads_;
    options.fate = &fate_;
    runner_.emplace(std::move(options));
  }
  ~PipelineOfThree() override {
    communicators_[0]->Abort(absl::CancelledError("the test is over"), -1);
    threads_.reset();
  }

  std::optional<RandomModel> model_;
  std::vector<std::unique_ptr<Rank>> made_;
  Group communicators_;
  std::vector<std::unique_ptr<NotingRank>> ranks_;
  RankProgress progress_[3];
  std::vector<LocalRank> locals_;
  EpochFate fate_;
  std::optional<RankThreads> threads_;
  std::optional<GroupRunner> runner_;
};

TEST_F(PipelineOfThree, EveryStageCutsAStepAsTheLeaderDoes) {
  Rank alone(model_->tensors(), model_->config(), kernels::BestOps(), false, {});
  std::vector<int32_t> ids;
  for (int i = 0; i < 64; ++i) ids.push_back(i * 7 % 80);
  const std::vector<int32_t> table = {1, 2, 3, 4};
  const StepBatch batch = BatchOfTokens(ids, table);
  std::vector<float> expected(80), logits(80);
  ASSERT_TRUE(alone.transformer->Forward(batch, absl::MakeSpan(expected)).ok());
  for (int step = 0; step < 20; ++step) {
    ASSERT_TRUE(runner_->Forward(batch, absl::MakeSpan(logits), {}).ok());
    ASSERT_EQ(logits, expected);
  }
  for (const auto& rank : ranks_) EXPECT_THAT(rank->cuts, Each(32));
}

// More than the ranks may be behind: each step ends only when the last stage has ended it.
TEST_F(PipelineOfThree, StepsThatWantNothingDoNotRunAhead) {
  const std::vector<int32_t> ids = {5}, table = {1};
  StepBatch batch = BatchOfTokens(ids, table);
  batch.slices[0].wants_logits = false;
  for (int step = 0; step < 200; ++step) ASSERT_TRUE(runner_->Forward(batch, {}, {}).ok());
  EXPECT_FALSE(fate_.end().has_value());
}

TEST_F(PipelineOfThree, AnImpossibleBatchIsTheStepsAlone) {
  const std::vector<int32_t> wrong = {80}, right = {5}, table = {1};
  std::vector<float> logits(80);
  EXPECT_EQ(runner_->Forward(BatchOfTokens(wrong, table), absl::MakeSpan(logits), {}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(runner_->Forward(BatchOfTokens(right, table), absl::MakeSpan(logits), {}).ok());
  EXPECT_FALSE(fate_.end().has_value());
}

// Of stages rank 0 draws on the host, and would not look before it writes.
TEST_F(PipelineOfThree, NoStageHearsOfAStepWhoseDrawsAreImpossible) {
  const std::vector<int32_t> ids = {5}, table = {1};
  const SamplingParams biased{.logit_bias = {{80, 1.0f}}};
  const SliceSampling draws{&biased, {}, 0};
  StepBatch batch = BatchOfTokens(ids, table);
  batch.slices[0].sampling = &draws;
  std::vector<float> logits(80);
  const absl::Status status = runner_->Forward(batch, absl::MakeSpan(logits), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "token 80 of a bias or penalty is outside the vocabulary of 80");
  EXPECT_TRUE(runner_->Forward(BatchOfTokens(ids, table), absl::MakeSpan(logits), {}).ok());
  for (const auto& rank : ranks_) EXPECT_EQ(rank->cuts.size(), 1u);
  EXPECT_FALSE(fate_.end().has_value());
}

TEST_F(PipelineOfThree, AStageThatIsLostEndsTheEpoch) {
  const std::vector<int32_t> ids = {5}, table = {1};
  std::vector<float> logits(80);
  ASSERT_TRUE(runner_->Forward(BatchOfTokens(ids, table), absl::MakeSpan(logits), {}).ok());
  communicators_[2]->Abort(absl::UnavailableError("its node is gone"), 2);
  EXPECT_FALSE(runner_->Forward(BatchOfTokens(ids, table), absl::MakeSpan(logits), {}).ok());
  EXPECT_TRUE(fate_.end().has_value());
  EXPECT_FALSE(runner_->Forward(BatchOfTokens(ids, table), absl::MakeSpan(logits), {}).ok());
}

}  // namespace
}  // namespace rempart::worker
