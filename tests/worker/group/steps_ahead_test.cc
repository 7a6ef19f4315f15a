// SPDX-License-Identifier: Apache-2.0
// A group whose ranks begin a step while the one before runs: which of them do, what ends when
// nothing comes any more, and what a rank that fails in the middle ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "worker/comm/in_process.h"
#include "worker/group/group_runner.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr int kRanks = 3;
// Tokens that no rank can compute, and that the last one fails at.
constexpr int32_t kImpossible = -1;
constexpr int32_t kBreaking = 99;

// As one on a device: does nothing until it is waited for, and then not without the others.
class QueuedRank : public RankModel, private StepPipeline {
 public:
  int32_t vocabulary_size() const override { return 100; }
  absl::Status Begin(Communicator* communicator, int32_t) override {
    communicator_ = communicator;
    return absl::OkStatus();
  }
  absl::Status Forward(const StepBatch&, absl::Span<float>, absl::Span<DrawnToken>) override {
    return absl::UnimplementedError("it has a pipeline");
  }
  StepPipeline* pipeline() override { return this; }

  std::atomic<int> started = 0, ended = 0, ahead = 0;
  std::atomic<int> followed = 0;  // slices that follow a token of the step before

 private:
  absl::StatusOr<bool> Start(const StepBatch& batch) override {
    const int32_t token = batch.slices[0].token_ids[0];
    if (token == kImpossible) return absl::InvalidArgumentError("no rank computes that");
    // Of rank 0 alone.
    const SliceSampling* const sampling = batch.slices[0].sampling;
    if (sampling != nullptr) RETURN_IF_ERROR(CheckSampling(*sampling, vocabulary_size()));
    if (token == kBreaking && communicator_->rank() == kRanks - 1) {
      return absl::InternalError("the last rank breaks");
    }
    EXPECT_LT(started - ended, 2);
    if (started++ > ended) ++ahead;
    if (batch.slices[0].follows == 7) ++followed;
    return communicator_->rank() == 0;
  }
  absl::Status Finish(absl::Span<float>, absl::Span<DrawnToken> drawn) override {
    EXPECT_EQ(drawn.empty(), communicator_->rank() > 0);
    EXPECT_LT(ended, started);
    ++ended;
    return communicator_->Barrier();
  }

  Communicator* communicator_ = nullptr;
};

class StepsAhead : public testing::Test {
 protected:
  StepsAhead() : communicators_(CreateInProcess(kRanks, {})) {
    std::vector<LocalRank> locals;
    for (int rank = 0; rank < kRanks; ++rank) {
      EXPECT_TRUE(ranks_[rank].Begin(communicators_[rank].get(), 0).ok());
      locals.push_back({rank, &ranks_[rank], communicators_[rank].get(), &progress_[rank]});
    }
    threads_.emplace(std::vector<LocalRank>(locals.begin() + 1, locals.end()),
                     [this](int32_t, const absl::Status& status) {
                       ++errors_;
                       fate_.End(std::string(status.message()), -1);
                     });
    GroupRunner::Options options;
    options.first = locals[0];
    options.others = &*threads_;
    options.send = [this](const GroupStep&) { return sent_; };
    options.fate = &fate_;
    options.on_lost = [this](const absl::Status&) { ++lost_; };
    runner_.emplace(std::move(options));
  }
  ~StepsAhead() override {
    communicators_[0]->Abort(absl::CancelledError("the test is over"), -1);
    threads_.reset();
    for (const QueuedRank& rank : ranks_) EXPECT_EQ(rank.started, rank.ended) << "one still runs";
  }

  absl::Status Start(int32_t token, int32_t follows = -1, const SliceSampling* sampling = nullptr) {
    const std::vector<int32_t> ids = {token}, table = {0};
    StepBatch batch;
    batch.slices = {{ids, 0, table, true, sampling, follows}};
    return runner_->pipeline()->Start(batch).status();
  }
  absl::Status Finish() {
    DrawnToken drawn;
    return runner_->pipeline()->Finish({}, absl::MakeSpan(&drawn, 1));
  }
  bool EndOnAllRanks(int64_t step) {
    const absl::Time give_up = SteadyNow() + absl::Seconds(60);
    const auto ended = [&](int rank) {
      const RankStatus status = progress_[rank].Read(rank, 1, nullptr);
      return status.step == step && status.activity == "idle";
    };
    while (!ended(0) || !ended(1) || !ended(2)) {
      if (SteadyNow() > give_up) return false;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return true;
  }

  std::vector<std::unique_ptr<Communicator>> communicators_;
  std::array<QueuedRank, kRanks> ranks_;
  std::array<RankProgress, kRanks> progress_;
  absl::Status sent_;  // what sending to other pods comes to
  std::atomic<int> errors_ = 0;
  int lost_ = 0;
  EpochFate fate_;
  std::optional<RankThreads> threads_;
  std::optional<GroupRunner> runner_;
};

TEST_F(StepsAhead, EveryRankBeginsAStepWhileTheOneBeforeRuns) {
  ASSERT_NE(runner_->pipeline(), nullptr);
  constexpr int kSteps = 200;
  ASSERT_TRUE(Start(1).ok());
  for (int step = 2; step <= kSteps; ++step) {
    ASSERT_TRUE(Start(1, 7).ok());
    ASSERT_TRUE(Finish().ok());
  }
  ASSERT_TRUE(Finish().ok());
  EXPECT_TRUE(EndOnAllRanks(kSteps));
  EXPECT_EQ(ranks_[0].ahead, kSteps - 1);
  for (const QueuedRank& rank : ranks_) {
    EXPECT_EQ(rank.ended, kSteps);
    EXPECT_EQ(rank.followed, kSteps - 1);
    EXPECT_GT(rank.ahead, kSteps / 2) << "but where the machine was busy";
  }
  EXPECT_FALSE(fate_.end().has_value());
}

TEST_F(StepsAhead, AStepThatNoOtherFollowsEndsOnAllRanks) {
  for (int step = 1; step <= 3; ++step) {
    ASSERT_TRUE(Start(1).ok());
    ASSERT_TRUE(Finish().ok());
    EXPECT_TRUE(EndOnAllRanks(step));
  }
}

TEST_F(StepsAhead, AnImpossibleBatchBehindAStepIsItsOwnFault) {
  ASSERT_TRUE(Start(1).ok());
  EXPECT_EQ(Start(kImpossible).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(Start(2).ok());
  EXPECT_TRUE(Finish().ok());
  EXPECT_TRUE(Finish().ok());
  EXPECT_TRUE(EndOnAllRanks(3));
  EXPECT_FALSE(fate_.end().has_value());
  EXPECT_EQ(lost_, 0);
}

// Which rank 0 alone would look at: the others would run a step that it does not.
TEST_F(StepsAhead, NoRankHearsOfAStepWhoseDrawsAreImpossible) {
  const SamplingParams plain, biased{.logit_bias = {{100, 1.0f}}};
  const std::vector<TokenCount> counts = {{-1, 1}};
  const std::vector<uint32_t> mask(5);
  int64_t steps = 0;
  for (const SliceSampling& draws :
       {SliceSampling{&biased, {}, 0}, SliceSampling{&plain, counts, 0},
        SliceSampling{&plain, {}, 0, mask}}) {
    ASSERT_TRUE(Start(1).ok());
    EXPECT_EQ(Start(2, -1, &draws).code(), absl::StatusCode::kInvalidArgument);
    ASSERT_TRUE(Finish().ok());
    EXPECT_TRUE(EndOnAllRanks(++steps));
    for (const QueuedRank& rank : ranks_) EXPECT_EQ(rank.started, steps);
  }
  EXPECT_FALSE(fate_.end().has_value());
  EXPECT_EQ(lost_, 0);
}

TEST_F(StepsAhead, ARankThatIsLostEndsBothStepsAndTheEpochOnce) {
  ASSERT_TRUE(Start(1).ok());
  ASSERT_TRUE(Start(2).ok());
  communicators_[1]->Abort(absl::UnavailableError("its node is gone"), 1);
  EXPECT_FALSE(Finish().ok());
  EXPECT_EQ(lost_, 1);
  EXPECT_FALSE(Finish().ok());
  ASSERT_TRUE(fate_.end().has_value());
  EXPECT_EQ(Start(3).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ranks_[0].started, 2) << "at once";
  EXPECT_EQ(lost_, 1);
  // Each of the others tells of the first.
  EXPECT_TRUE(EndOnAllRanks(2));
  EXPECT_EQ(errors_, kRanks - 1);
}

TEST_F(StepsAhead, ARankThatCannotBeginAStepEndsTheEpochOnce) {
  ASSERT_TRUE(Start(1).ok());
  ASSERT_TRUE(Start(kBreaking).ok());
  Finish().IgnoreError();  // the last rank may have ended it in time
  EXPECT_FALSE(Finish().ok());
  ASSERT_TRUE(fate_.end().has_value());
  EXPECT_EQ(Start(2).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(lost_, 1);
  EXPECT_TRUE(threads_->Stop(absl::Seconds(60)));
  EXPECT_EQ(ranks_[kRanks - 1].ended, 1);
}

TEST_F(StepsAhead, APodThatIsGoneWhenTheNextStepIsSentEndsTheEpochOnce) {
  ASSERT_TRUE(Start(1).ok());
  sent_ = absl::UnavailableError("pod 1 no longer follows");
  EXPECT_THAT(std::string(Start(2).message()), HasSubstr("pod 1 no longer follows"));
  EXPECT_EQ(lost_, 1);
  EXPECT_TRUE(fate_.end().has_value());
  EXPECT_EQ(ranks_[0].started, 1);
  EXPECT_FALSE(Finish().ok()) << "it waits for nobody";
  EXPECT_EQ(Start(3).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(lost_, 1);
}

}  // namespace
}  // namespace rempart::worker
