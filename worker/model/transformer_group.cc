// SPDX-License-Identifier: Apache-2.0
// What a rank says to the others of its group, besides its share of each product: the residual from
// stage to stage, and the logits to rank 0.
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/transformer.h"

namespace rempart::worker {

void Transformer::SetCommunicator(Communicator* communicator) {
  const RankPosition& of = partition_.of;
  communicator_ = stage_communicator_ = communicator;
  stage_part_.reset();
  if (of.stages == 1 || of.size == 1 || !CheckCommunicator().ok()) return;
  stage_part_ = communicator->Part(of.first_of_stage(), of.size);
  stage_communicator_ = stage_part_.get();
}

absl::Status Transformer::CheckCommunicator() const {
  const RankPosition& of = partition_.of;
  if (of.group_size() == 1) return absl::OkStatus();
  if (communicator_ != nullptr && communicator_->rank() == of.group_rank() &&
      communicator_->size() == of.group_size()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "rank ", of.group_rank(), " of ", of.group_size(), " has no communicator of its group"));
}

std::vector<int64_t> Transformer::ResidualParts() const {
  const int64_t size = partition_.of.size;
  std::vector<int64_t> parts;
  for (int64_t rank = 0; rank <= size; ++rank) {
    parts.push_back(num_tokens_ * config_.hidden * rank / size);
  }
  return parts;
}

absl::Status Transformer::SendResidual() {
  const RankPosition& of = partition_.of;
  const Range own = partition_.Own(ResidualParts());
  return communicator_->Send(residual_.data() + own.begin,
                             own.count() * static_cast<int64_t>(sizeof(float)),
                             of.group_rank() + of.size);
}

absl::Status Transformer::ReceiveResidual() {
  const RankPosition& of = partition_.of;
  const std::vector<int64_t> parts = ResidualParts();
  const Range own = partition_.Own(parts);
  RETURN_IF_ERROR(communicator_->Receive(residual_.data() + own.begin,
                                         own.count() * static_cast<int64_t>(sizeof(float)),
                                         of.group_rank() - of.size));
  if (of.size == 1) return absl::OkStatus();
  return stage_communicator_->AllGather(SharesOf(residual_.data(), 1, parts, 1, sizeof(float)));
}

absl::Status Transformer::Finish(float* logits, int64_t rows) {
  const RankPosition& of = partition_.of;
  const bool has_one_stage = of.stages == 1;
  if (of.group_size() > 1 && rows > 0) {
    RETURN_IF_ERROR(communicator_->Gather(
        SharesOf(logits, rows, group_vocabulary_, 1, sizeof(float)), /*root=*/0));
  } else if (!has_one_stage) {
    // Without it rank 0 would run ahead of the others, a step at a time.
    uint8_t done = 0;
    std::vector<int64_t> offsets(of.group_size() + 1, 0);
    offsets.back() = 1;
    RETURN_IF_ERROR(communicator_->Gather({&done, 1, 1, offsets}, /*root=*/0));
  }
  if (of.group_rank() == 0 && config_.logit_softcap > 0) {
    ops_.softcap(logits, config_.logit_softcap, 0, rows * config_.vocabulary);
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
