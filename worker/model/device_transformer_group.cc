// SPDX-License-Identifier: Apache-2.0
// What a rank of one stage of several says to the other stages, from host to host: the residual on
// its way, and the logits to rank 0.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/device_transformer.h"

namespace rempart::worker {

void DeviceTransformer::SetGroup(Communicator* group) {
  const RankPosition& of = partition_.of;
  stage_part_.reset();
  group_ = group;
  if (!is_staged() || !is_one_of_several() || !IsInGroup()) return;
  stage_part_ = group->Part(of.first_of_stage(), of.size);
}

bool DeviceTransformer::IsInGroup() const {
  const RankPosition& of = partition_.of;
  return group_ != nullptr && group_->rank() == of.group_rank() &&
         group_->size() == of.group_size();
}

absl::Status DeviceTransformer::CheckCommunicator() const {
  const RankPosition& of = partition_.of;
  const bool has_stage =
      !is_one_of_several() || (communicator_ != nullptr && communicator_->rank() == of.rank &&
                               communicator_->size() == of.size);
  if (!has_stage || (is_staged() && !IsInGroup())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "rank ", of.group_rank(), " of ", of.group_size(), " has no communicator of its group"));
  }
  if (is_staged()) RETURN_IF_ERROR(group_->status());
  // A graph that holds collectives of a communicator that has ended must not start again.
  return is_one_of_several() ? communicator_->status() : absl::OkStatus();
}

absl::Status DeviceTransformer::AllocateForStages() {
  if (!is_staged()) return absl::OkStatus();
  ASSIGN_OR_RETURN(residual_staging_,
                   PinnedBuffer::Make(device_, plan_.workspace.tokens * config_.hidden * 4));
  if (reads_logits()) logits_.resize(options_.max_sequences * config_.vocabulary);
  return absl::OkStatus();
}

// Every rank of a stage has the whole residual. Each sends a part of it to its like in the next
// stage, over a link of its own; there they gather the rest among themselves.
std::vector<int64_t> DeviceTransformer::ResidualParts(int64_t tokens) const {
  std::vector<int64_t> offsets;
  for (int64_t rank = 0; rank <= partition_.of.size; ++rank) {
    offsets.push_back(tokens * config_.hidden * rank / partition_.of.size * 4);
  }
  return offsets;
}

absl::Status DeviceTransformer::SendResidual(int64_t tokens) {
  const RankPosition& of = partition_.of;
  const Range own = partition_.Own(ResidualParts(tokens));
  auto* const staged = residual_staging_.as<uint8_t>() + own.begin;
  device_.CopyOut(staged, At<uint8_t>(plan_.workspace.residual) + own.begin, own.count());
  RETURN_IF_ERROR(AwaitAll());
  return group_->Send(staged, own.count(), of.group_rank() + of.size);
}

absl::Status DeviceTransformer::ReceiveResidual(int64_t tokens) {
  const RankPosition& of = partition_.of;
  const std::vector<int64_t> offsets = ResidualParts(tokens);
  const Range own = partition_.Own(offsets);
  auto* const staged = residual_staging_.as<uint8_t>();
  RETURN_IF_ERROR(group_->Receive(staged + own.begin, own.count(), of.group_rank() - of.size));
  if (stage_part_ != nullptr) {
    RETURN_IF_ERROR(stage_part_->AllGather({staged, 1, offsets.back(), offsets}));
  }
  device_.CopyIn(At<uint8_t>(plan_.workspace.residual), staged, offsets.back());
  return absl::OkStatus();
}

absl::Status DeviceTransformer::ForwardInMicroBatches(const StepBatch& batch,
                                                      absl::Span<float> logits) {
  RETURN_IF_ERROR(CheckCommunicator());
  RETURN_IF_ERROR(Check(batch));
  int64_t wanting = 0;
  for (const SequenceSlice& slice : batch.slices) wanting += slice.wants_logits ? 1 : 0;
  const bool is_first = partition_.of.group_rank() == 0;
  if (is_first && static_cast<int64_t>(logits.size()) < wanting * config_.vocabulary) {
    return absl::InvalidArgumentError("the logits have too little room");
  }
  QueueCopies(batch);
  if (batch.slices.empty()) return AwaitAll();
  float* const all = is_first ? logits.data() : logits_.data();
  int64_t rows = 0;
  for (const StepBatch& part : MicroBatches(batch)) {
    RETURN_IF_ERROR(ComputeMicroBatch(part, all, rows));
  }
  return is_staged() ? FinishStages(all, rows) : absl::OkStatus();
}

absl::Status DeviceTransformer::ComputeMicroBatch(const StepBatch& batch, float* logits,
                                                  int64_t& first_row) {
  int64_t tokens = 0;
  for (const SequenceSlice& slice : batch.slices) {
    tokens += static_cast<int64_t>(slice.token_ids.size());
  }
  const StepShape shape = Stage(batch, /*draws=*/false);
  const std::vector<Row>& rows = staged().rows;
  const int64_t first = std::exchange(first_row, first_row + static_cast<int64_t>(rows.size()));
  if (!partition_.of.is_first_stage()) RETURN_IF_ERROR(ReceiveResidual(tokens));
  RETURN_IF_ERROR(QueueStaged(shape));
  if (!partition_.of.is_last_stage()) return SendResidual(tokens);
  QueueResults(shape);
  RETURN_IF_ERROR(AwaitAll());
  if (!reads_logits()) return absl::OkStatus();
  for (size_t i = 0; i < rows.size(); ++i) {
    ReadLogits(static_cast<int64_t>(i), shape.wanting,
               logits + (first + rows[i].wanted) * config_.vocabulary);
  }
  return absl::OkStatus();
}

absl::Status DeviceTransformer::FinishStages(float* logits, int64_t rows) {
  const RankPosition& of = partition_.of;
  // Without the word that it is done, rank 0 would run ahead of the others, a step at a time.
  uint8_t done = 0;
  void* const data = rows > 0 ? static_cast<void*>(logits) : &done;
  const int64_t bytes = rows > 0 ? rows * config_.vocabulary * 4 : 1;
  if (reads_logits()) return group_->Send(data, bytes, /*to=*/0);
  if (of.group_rank() > 0) return absl::OkStatus();
  return group_->Receive(data, bytes, /*from=*/(of.stages - 1) * of.size);
}

}  // namespace rempart::worker
