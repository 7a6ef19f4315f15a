// SPDX-License-Identifier: Apache-2.0
// What the leader's engine runs its steps on: every rank of the group. A step goes to the other
// pods and to the other ranks of this one, and rank 0 runs it on the engine's own thread meanwhile.
//
// 1. A step that any rank cannot end ends the epoch: `on_lost` is called before Forward returns,
// and
//    every later Forward fails at once.
// 2. An error that all ranks share (an impossible batch) is the step's alone.
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
  explicit GroupRunner(Options options) : options_(std::move(options)) {}

  int32_t vocabulary_size() const override { return options_.first.model->vocabulary_size(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override;
  // That of rank 0, where it is alone: the tokens that it draws ahead are on no other rank.
  StepPipeline* pipeline() override;

 private:
  absl::StatusOr<bool> Start(const StepBatch& batch) override;
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) override;
  bool IsLost() const;
  absl::Status LoseUnlessShared(const absl::Status& status);
  absl::Status RunOnAll(StepBatch batch, absl::Span<float> logits, absl::Span<DrawnToken> drawn);
  absl::Status Lose(const absl::Status& status);

  const Options options_;
  // Of the engine's thread.
  int64_t step_ = 0;   // begun
  int64_t ended_ = 0;  // of those of the pipeline
  bool lost_ = false;
};

}  // namespace rempart::worker
