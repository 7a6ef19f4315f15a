// SPDX-License-Identifier: Apache-2.0
#include "worker/group/group_runner.h"

#include <string>

#include "common/status_macros.h"

namespace rempart::worker {

absl::Status GroupRunner::Forward(const StepBatch& batch, absl::Span<float> logits,
                                  absl::Span<DrawnToken> drawn) {
  if (IsLost()) return Lose(absl::UnavailableError("the group has lost a rank"));
  return LoseUnlessShared(RunOnAll(batch, logits, drawn));
}

bool GroupRunner::IsLost() const {
  return lost_ || (options_.fate != nullptr && options_.fate->end().has_value());
}

absl::Status GroupRunner::LoseUnlessShared(const absl::Status& status) {
  if (status.ok() || FailsOnAllRanks(status, options_.first.communicator)) return status;
  return Lose(status);
}

StepPipeline* GroupRunner::pipeline() {
  const bool is_alone = options_.send == nullptr && options_.others == nullptr;
  return is_alone && options_.first.model->pipeline() != nullptr ? this : nullptr;
}

absl::StatusOr<bool> GroupRunner::Start(const StepBatch& batch) {
  if (IsLost()) return Lose(absl::UnavailableError("the group has lost a rank"));
  absl::StatusOr<bool> started = options_.first.model->pipeline()->Start(batch);
  if (!started.ok()) return LoseUnlessShared(started.status());
  ++step_;
  options_.first.progress->BeginStep();
  return started;
}

absl::Status GroupRunner::Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) {
  const absl::Status status = options_.first.model->pipeline()->Finish(logits, drawn);
  options_.first.progress->EndStep(++ended_);
  if (ended_ < step_) options_.first.progress->BeginStep();
  return LoseUnlessShared(status);
}

absl::Status GroupRunner::RunOnAll(StepBatch batch, absl::Span<float> logits,
                                   absl::Span<DrawnToken> drawn) {
  ++step_;
  batch.micro_batch_tokens = MicroBatchTokens(batch, options_.stages, options_.least_micro_batch);
  if (options_.send != nullptr || options_.others != nullptr) {
    auto step = std::make_shared<const GroupStep>(OwnedStep(batch, options_.epoch, step_));
    if (options_.send != nullptr) RETURN_IF_ERROR(options_.send(*step));
    if (options_.others != nullptr) RETURN_IF_ERROR(options_.others->Push(std::move(step)));
  }
  options_.first.progress->BeginStep();
  absl::Status status = options_.first.model->Forward(batch, logits, drawn);
  options_.first.progress->EndStep(step_);
  return status;
}

absl::Status GroupRunner::Lose(const absl::Status& status) {
  if (std::exchange(lost_, true)) return status;
  int blamed_rank = -1;
  if (options_.first.communicator != nullptr) {
    blamed_rank = options_.first.communicator->progress().blamed_rank;
    options_.first.communicator->Abort(status, blamed_rank);
  }
  if (options_.fate != nullptr) options_.fate->End(std::string(status.message()), blamed_rank);
  if (options_.on_lost != nullptr) options_.on_lost(status);
  return status;
}

}  // namespace rempart::worker
