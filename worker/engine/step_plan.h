// SPDX-License-Identifier: Apache-2.0
// What the scheduler sees and what it decides: plain data, no pointers into the engine.
#pragma once

#include <cstdint>
#include <vector>

namespace rempart::worker {

struct SchedulerLimits {
  int32_t max_step_tokens = 512;  // tokens of one step, prefill and decode together
  int32_t max_sequences = 32;     // sequences that hold blocks
  int32_t block_size = 16;        // tokens per KV block
  // Steps of waiting that are worth one point of priority.
  int32_t aging_steps = 256;
};

// One sequence as the scheduler sees it. Waiting: holds no blocks and has nothing computed.
struct ScheduledSequence {
  uint64_t sequence_id = 0;
  int32_t priority = 0;      // higher runs first
  uint64_t arrival = 0;      // order of submission; unique
  int32_t steps_waited = 0;  // steps spent waiting since submission
  bool running = false;
  int32_t tokens_known = 0;     // prompt and generated tokens
  int32_t tokens_computed = 0;  // of those, in the KV cache; less than tokens_known
  int32_t blocks_held = 0;
};

struct EngineState {
  SchedulerLimits limits;
  int32_t blocks_free = 0;
  std::vector<ScheduledSequence> sequences;  // in any order
};

// One sequence's share of a step: its next `token_count` tokens, from tokens_computed on.
struct PlannedSlice {
  uint64_t sequence_id = 0;
  int32_t token_count = 0;
  int32_t blocks_to_add = 0;
  bool operator==(const PlannedSlice&) const = default;
};

struct StepPlan {
  // Give up their blocks before this step and wait again; computed anew later.
  std::vector<uint64_t> preempted;
  std::vector<PlannedSlice> slices;
};

}  // namespace rempart::worker
