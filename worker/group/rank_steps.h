// SPDX-License-Identifier: Apache-2.0
// The steps of one rank of this pod, and how far they are: at once where its model computes them on
// the thread that asks, begun one behind the other where it has a pipeline. Of one thread.
#pragma once

#include <deque>

#include "worker/comm/communicator.h"
#include "worker/group/rank_model.h"
#include "worker/group/rank_progress.h"

namespace rempart::worker {

// A rank of this pod in one epoch. Everything outlives who runs its steps.
struct LocalRank {
  int32_t rank = 0;
  RankModel* model = nullptr;
  Communicator* communicator = nullptr;  // null in a group of one rank
  RankProgress* progress = nullptr;
};

// True when every rank has come to the same error by itself: the batch was impossible, and nobody
// waits for anybody.
bool FailsOnAllRanks(const absl::Status& status, const Communicator* communicator);

class RankSteps {
 public:
  explicit RankSteps(const LocalRank& rank) : rank_(rank), pipeline_(rank.model->pipeline()) {}

  const LocalRank& rank() const { return rank_; }
  bool has_pipeline() const { return pipeline_ != nullptr; }
  size_t running() const { return running_.size(); }

  // As the model's; `step` is its number in the epoch.
  absl::Status Forward(int64_t step, const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn);
  // As those of the model's pipeline.
  absl::StatusOr<bool> Start(int64_t step, const StepBatch& batch);
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn);

 private:
  const LocalRank rank_;
  StepPipeline* const pipeline_;
  std::deque<int64_t> running_;  // numbers of the steps that have begun and not ended
};

}  // namespace rempart::worker
