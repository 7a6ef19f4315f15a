// SPDX-License-Identifier: Apache-2.0
// What the leader's engine runs its steps on: every rank of the group. A step goes to the other
// pods and to the other ranks of this one, and rank 0 runs it on the engine's own thread meanwhile.
// Where the ranks of the only stage have pipelines, all begin a step while the one before runs.
//
// 1. A step that any rank cannot begin or end ends the epoch: `on_lost` is called before Forward,
//    Start or Finish returns, and every later Forward or Start fails at once.
// 2. An error that all ranks share (an impossible batch) is the step's alone. How tokens are drawn
//    only rank 0 is told: what is wrong with that is found before any rank hears of the step.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "worker/engine/model_runner.h"
#include "worker/group/epoch_fate.h"
#include "worker/group/micro_batch_size.h"
#include "worker/group/rank_threads.h"
#include "worker/group/step.h"

namespace rempart::worker {

class GroupRunner : public ModelRunner, private StepPipeline {
 public:
  struct Options {
    int32_t epoch = 0;
    int stages = 1;                                     // of the pipeline
    int64_t least_micro_batch = kLeastMicroBatchOnCpu;  // in tokens
    LocalRank first;                                    // rank 0
    RankThreads* others = nullptr;                      // of this pod; null: none
    // Hands a step to the other pods without waiting for them; null: there are none.
    std::function<absl::Status(const GroupStep&)> send;
    EpochFate* fate = nullptr;
    std::function<void(const absl::Status&)> on_lost;
  };
  explicit GroupRunner(Options options) : options_(std::move(options)), first_(options_.first) {}

  int32_t vocabulary_size() const override { return options_.first.model->vocabulary_size(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override;
  // Where rank 0 has one: then all ranks do, whose devices hand on what it draws.
  StepPipeline* pipeline() override { return first_.has_pipeline() ? this : nullptr; }

 private:
  absl::StatusOr<bool> Start(const StepBatch& batch) override;
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) override;
  bool IsLost() const;
  absl::Status LoseUnlessShared(const absl::Status& status);
  absl::Status CheckDraws(const StepBatch& batch) const;
  // Gives the next step to all ranks but rank 0.
  absl::Status Send(const StepBatch& batch);
  absl::Status Lose(const absl::Status& status);

  const Options options_;
  // Of the engine's thread.
  RankSteps first_;
  int64_t step_ = 0;  // the last one that was sent
  bool lost_ = false;
};

}  // namespace rempart::worker
