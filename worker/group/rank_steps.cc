// SPDX-License-Identifier: Apache-2.0
#include "worker/group/rank_steps.h"

#include "common/check.h"

namespace rempart::worker {

bool FailsOnAllRanks(const absl::Status& status, const Communicator* communicator) {
  return communicator == nullptr ||
         (absl::IsInvalidArgument(status) && communicator->status().ok());
}

absl::Status RankSteps::Forward(int64_t step, const StepBatch& batch, absl::Span<float> logits,
                                absl::Span<DrawnToken> drawn) {
  rank_.progress->BeginStep();
  absl::Status status = rank_.model->Forward(batch, logits, drawn);
  rank_.progress->EndStep(step);
  return status;
}

absl::StatusOr<bool> RankSteps::Start(int64_t step, const StepBatch& batch) {
  // It may wait already: a device that does its work at once does it here.
  if (running_.empty()) rank_.progress->BeginStep();
  absl::StatusOr<bool> started = pipeline_->Start(batch);
  if (started.ok()) {
    running_.push_back(step);
  } else if (running_.empty()) {
    rank_.progress->EndStep(step);
  }
  return started;
}

absl::Status RankSteps::Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) {
  CHECK(!running_.empty());
  absl::Status status = pipeline_->Finish(logits, drawn);
  rank_.progress->EndStep(running_.front());
  running_.pop_front();
  if (!running_.empty()) rank_.progress->BeginStep();
  return status;
}

}  // namespace rempart::worker
