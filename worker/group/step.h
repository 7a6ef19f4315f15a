// SPDX-License-Identifier: Apache-2.0
// One step as it travels from the leader's engine to other threads and pods: the batch with memory
// of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/model/step_batch.h"

namespace rempart::worker {

struct OwnedSlice {
  std::vector<int32_t> token_ids;
  int32_t first_position = 0;
  std::vector<int32_t> block_table;
  bool wants_logits = false;
  int32_t follows = -1;  // as SequenceSlice has it
};

struct GroupStep {
  int64_t step = 0;  // counts from 1 in each epoch
  int32_t epoch = 0;
  std::vector<BlockCopy> copies;
  std::vector<OwnedSlice> slices;
  int32_t micro_batch_tokens = 0;
};

GroupStep OwnedStep(const StepBatch& batch, int32_t epoch, int64_t step);
// Spans into `step`.
StepBatch BatchOf(const GroupStep& step);

}  // namespace rempart::worker
