// SPDX-License-Identifier: Apache-2.0
#include "worker/api/group_wire.h"

#include <algorithm>
#include <climits>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

int32_t Clamped(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, 0, INT32_MAX));
}

}  // namespace

void WriteStep(const GroupStep& step, group::v1::ToFollower* out) {
  out->set_step(step.step);
  out->set_epoch(step.epoch);
  out->set_micro_batch_tokens(step.micro_batch_tokens);
  for (const BlockCopy& copy : step.copies) {
    group::v1::BlockCopy* written = out->add_copies();
    written->set_source(copy.source);
    written->set_destination(copy.destination);
  }
  for (const OwnedSlice& slice : step.slices) {
    group::v1::SequenceSlice* written = out->add_slices();
    written->mutable_token_ids()->Add(slice.token_ids.begin(), slice.token_ids.end());
    written->set_first_position(slice.first_position);
    written->mutable_block_table()->Add(slice.block_table.begin(), slice.block_table.end());
    written->set_wants_logits(slice.wants_logits);
    if (slice.follows >= 0) written->set_follows(slice.follows);
  }
}

absl::StatusOr<GroupStep> ReadStep(const group::v1::ToFollower& message) {
  if (message.step() < 1) return absl::InvalidArgumentError("a step counts from 1");
  GroupStep step;
  step.step = message.step();
  step.epoch = message.epoch();
  step.micro_batch_tokens = message.micro_batch_tokens();
  for (const auto& copy : message.copies()) {
    step.copies.push_back({copy.source(), copy.destination()});
  }
  for (const auto& slice : message.slices()) {
    step.slices.push_back({{slice.token_ids().begin(), slice.token_ids().end()},
                           slice.first_position(),
                           {slice.block_table().begin(), slice.block_table().end()},
                           slice.wants_logits(),
                           slice.has_follows() ? slice.follows() : -1});
    if (slice.has_follows() && slice.follows() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("slices.follows: ", slice.follows(),
                       " is no place in the step before: leave it out where a token is known"));
    }
  }
  return step;
}

void WriteRank(const RankStatus& status, group::v1::RankProgress* out) {
  out->set_rank(status.rank);
  out->set_step(status.step);
  out->set_last_step_age_ms(Clamped(status.step_age_ms));
  out->set_activity(status.activity);
  out->set_epoch(status.epoch);
  out->set_activity_age_ms(Clamped(status.activity_age_ms));
  out->set_collectives(status.collectives);
  for (const int32_t rank : status.waiting_for) out->add_waiting_for_ranks(rank);
  out->set_heard_age_ms(Clamped(status.heard_age_ms));
}

RankStatus ReadRank(const group::v1::RankProgress& message) {
  RankStatus status;
  status.rank = message.rank();
  status.epoch = message.epoch();
  status.step = message.step();
  status.step_age_ms = message.last_step_age_ms();
  status.activity = message.activity();
  status.activity_age_ms = message.activity_age_ms();
  status.collectives = message.collectives();
  status.waiting_for.assign(message.waiting_for_ranks().begin(), message.waiting_for_ranks().end());
  return status;
}

void WriteGpus(const GpuSnapshot& snapshot, group::v1::GpuReport* out) {
  out->set_driver_version(snapshot.driver_version);
  out->set_cuda_version(snapshot.cuda_version);
  out->set_problem(snapshot.problem);
  for (const GpuFacts& gpu : snapshot.gpus) {
    group::v1::Gpu* written = out->add_gpus();
    written->set_uuid(gpu.uuid);
    written->set_name(gpu.name);
    written->set_pci_bus_id(gpu.pci_bus_id);
    written->set_compute_capability(gpu.compute_capability);
    written->set_mig(gpu.is_mig);
    written->set_memory_bytes(gpu.total_bytes);
    written->set_ecc_uncorrected(gpu.ecc_uncorrected);
    written->set_ecc_uncorrected_lifetime(gpu.ecc_uncorrected_lifetime);
    written->set_remap_pending(gpu.remap_pending);
    written->set_remap_failed(gpu.remap_failed);
    written->set_wants_reset(gpu.condition == GpuCondition::kWantsReset);
  }
  for (const GpuPair& pair : snapshot.pairs) {
    group::v1::GpuPair* written = out->add_pairs();
    written->set_first(pair.first);
    written->set_second(pair.second);
    written->set_nvlinks(pair.nvlinks);
    written->set_path(pair.path);
  }
  if (!snapshot.fault.has_value()) return;
  group::v1::GpuFault* fault = out->mutable_fault();
  fault->set_gpu(snapshot.fault->gpu);
  fault->set_xid(Clamped(snapshot.fault->xid));
  fault->set_meaning(snapshot.fault->meaning);
  fault->set_advice(snapshot.fault->advice);
  fault->set_at_unix_ms(absl::ToUnixMillis(snapshot.fault->at));
  fault->set_broken(snapshot.fault->is_broken);
}

}  // namespace rempart::worker
