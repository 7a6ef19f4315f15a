// SPDX-License-Identifier: Apache-2.0
#include "worker/group/group_runner.h"

#include <string>

#include "common/status_macros.h"

namespace rempart::worker {

absl::Status GroupRunner::Forward(const StepBatch& batch, absl::Span<float> logits,
                                  absl::Span<DrawnToken> drawn) {
  if (IsLost()) return Lose(absl::UnavailableError("the group has lost a rank"));
  RETURN_IF_ERROR(CheckDraws(batch));
  StepBatch cut = batch;
  cut.micro_batch_tokens = MicroBatchTokens(batch, options_.stages, options_.least_micro_batch);
  absl::Status status = Send(cut);
  if (status.ok()) status = first_.Forward(step_, cut, logits, drawn);
  return LoseUnlessShared(status);
}

absl::Status GroupRunner::CheckDraws(const StepBatch& batch) const {
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.sampling == nullptr) continue;
    RETURN_IF_ERROR(CheckSampling(*slice.sampling, vocabulary_size()));
  }
  return absl::OkStatus();
}

bool GroupRunner::IsLost() const {
  return lost_ || (options_.fate != nullptr && options_.fate->end().has_value());
}

absl::Status GroupRunner::LoseUnlessShared(const absl::Status& status) {
  if (status.ok() || FailsOnAllRanks(status, options_.first.communicator)) return status;
  return Lose(status);
}

absl::StatusOr<bool> GroupRunner::Start(const StepBatch& batch) {
  if (IsLost()) return Lose(absl::UnavailableError("the group has lost a rank"));
  RETURN_IF_ERROR(CheckDraws(batch));
  if (const absl::Status sent = Send(batch); !sent.ok()) return LoseUnlessShared(sent);
  absl::StatusOr<bool> started = first_.Start(step_, batch);
  if (!started.ok()) return LoseUnlessShared(started.status());
  return started;
}

absl::Status GroupRunner::Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) {
  return LoseUnlessShared(first_.Finish(logits, drawn));
}

absl::Status GroupRunner::Send(const StepBatch& batch) {
  ++step_;
  if (options_.send == nullptr && options_.others == nullptr) return absl::OkStatus();
  auto step = std::make_shared<const GroupStep>(OwnedStep(batch, options_.epoch, step_));
  if (options_.send != nullptr) RETURN_IF_ERROR(options_.send(*step));
  return options_.others == nullptr ? absl::OkStatus() : options_.others->Push(std::move(step));
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
