// SPDX-License-Identifier: Apache-2.0
#include "worker/group/step.h"

namespace rempart::worker {

GroupStep OwnedStep(const StepBatch& batch, int32_t epoch, int64_t step) {
  GroupStep owned;
  owned.step = step;
  owned.epoch = epoch;
  owned.copies = batch.copies;
  owned.micro_batch_tokens = batch.micro_batch_tokens;
  owned.slices.reserve(batch.slices.size());
  for (const SequenceSlice& slice : batch.slices) {
    owned.slices.push_back({{slice.token_ids.begin(), slice.token_ids.end()},
                            slice.first_position,
                            {slice.block_table.begin(), slice.block_table.end()},
                            slice.wants_logits,
                            slice.follows});
  }
  return owned;
}

StepBatch BatchOf(const GroupStep& step) {
  StepBatch batch;
  batch.copies = step.copies;
  batch.micro_batch_tokens = step.micro_batch_tokens;
  batch.slices.reserve(step.slices.size());
  for (const OwnedSlice& slice : step.slices) {
    batch.slices.push_back({slice.token_ids, slice.first_position, slice.block_table,
                            slice.wants_logits, nullptr, slice.follows});
  }
  return batch;
}

}  // namespace rempart::worker
