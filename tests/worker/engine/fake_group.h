// SPDX-License-Identifier: Apache-2.0
// A group of two ranks over FakeModel: the first one draws, the other one computes what reaches it.
// What was drawn passes between them as it does between devices, when a step follows it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "tests/worker/engine/fake_model.h"
#include "worker/comm/in_process.h"
#include "worker/group/group_runner.h"

namespace rempart::worker {

// Either rank. Both compare what they have computed at each step.
class FakeRank : public RankModel, private StepPipeline {
 public:
  explicit FakeRank(FakeModel& model) : model_(model) {
    model_.script = [this](const std::vector<int32_t>& context, float*) {
      for (const int32_t token : context) {
        computed_ = FakeHash(computed_, static_cast<uint64_t>(token) + 1);
      }
    };
  }

  int32_t vocabulary_size() const override { return kFakeVocabulary; }
  absl::Status Begin(Communicator* communicator, int32_t) override {
    communicator_ = communicator;
    return absl::OkStatus();
  }
  absl::Status Forward(const StepBatch&, absl::Span<float>, absl::Span<DrawnToken>) override {
    return absl::UnimplementedError("it has a pipeline");
  }
  StepPipeline* pipeline() override { return this; }
  int64_t different_count() const { return different_count_; }

 private:
  static constexpr size_t kMostDrawn = 16;  // in a step

  absl::StatusOr<bool> Start(const StepBatch& batch) override {
    std::array<int32_t, kMostDrawn> drawn = {};
    const bool follows = std::any_of(batch.slices.begin(), batch.slices.end(),
                                     [](const SequenceSlice& slice) { return slice.follows >= 0; });
    if (follows) {
      for (size_t i = 0; is_first() && i < model_.last_drawn().size(); ++i) {
        drawn[i] = model_.last_drawn()[i].token_id;
      }
      const absl::Status passed = communicator_->Broadcast(drawn.data(), sizeof(drawn), 0);
      if (!passed.ok()) return passed;
    }
    computed_ = 1;
    absl::StatusOr<bool> started = false;
    if (is_first()) {
      started = model_.pipeline()->Start(batch);
    } else {
      const absl::Status status = Compute(batch, drawn);
      if (!status.ok()) started = status;
    }
    uint64_t other = computed_;
    const absl::Status compared = communicator_->Broadcast(&other, sizeof(other), 0);
    if (!compared.ok()) return compared;
    different_count_ += other == computed_ ? 0 : 1;
    return started;
  }
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) override {
    return is_first() ? model_.pipeline()->Finish(logits, drawn) : absl::OkStatus();
  }

  bool is_first() const { return communicator_->rank() == 0; }
  absl::Status Compute(const StepBatch& batch, const std::array<int32_t, kMostDrawn>& drawn) {
    StepBatch known = batch;
    size_t wanting = 0;
    for (SequenceSlice& slice : known.slices) {
      EXPECT_EQ(slice.sampling, nullptr) << "it knows nothing of draws";
      wanting += slice.wants_logits ? 1 : 0;
      if (slice.follows < 0) continue;
      slice.token_ids = absl::MakeConstSpan(&drawn.at(static_cast<size_t>(slice.follows)), 1);
    }
    std::vector<float> logits(wanting * kFakeVocabulary);
    return model_.Forward(known, absl::MakeSpan(logits), {});
  }

  FakeModel& model_;
  Communicator* communicator_ = nullptr;
  uint64_t computed_ = 0;
  int64_t different_count_ = 0;
};

class FakeGroup {
 public:
  // `first` has a pipeline, `second` none; both as much memory.
  FakeGroup(FakeModel& first, FakeModel& second)
      : communicators_(CreateInProcess(2, {})), first_(first), second_(second) {
    FakeRank* const ranks[] = {&first_, &second_};
    std::vector<LocalRank> locals;
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_TRUE(ranks[rank]->Begin(communicators_[rank].get(), 0).ok());
      locals.push_back({rank, ranks[rank], communicators_[rank].get(), &progress_[rank]});
    }
    threads_.emplace(std::vector<LocalRank>{locals[1]},
                     [](int32_t, const absl::Status& status) { ADD_FAILURE() << status; });
    GroupRunner::Options options;
    options.first = locals[0];
    options.others = &*threads_;
    options.on_lost = [](const absl::Status& status) { ADD_FAILURE() << status; };
    runner_.emplace(std::move(options));
  }
  // Steps at which one of them computed something else. Of no engine that runs.
  int64_t different_count() {
    const absl::Time give_up = SteadyNow() + absl::Seconds(60);
    while (LastStep(1) < LastStep(0) && SteadyNow() < give_up) absl::SleepFor(kLook);
    EXPECT_EQ(LastStep(1), LastStep(0));
    EXPECT_TRUE(threads_->Stop(absl::Seconds(60)));
    return first_.different_count() + second_.different_count();
  }
  GroupRunner& runner() { return *runner_; }

 private:
  static constexpr absl::Duration kLook = absl::Milliseconds(1);
  int64_t LastStep(int rank) const { return progress_[rank].Read(rank, 1, nullptr).step; }

  std::vector<std::unique_ptr<Communicator>> communicators_;
  FakeRank first_, second_;
  std::array<RankProgress, 2> progress_;
  std::optional<RankThreads> threads_;
  std::optional<GroupRunner> runner_;
};

}  // namespace rempart::worker
