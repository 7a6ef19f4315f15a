// SPDX-License-Identifier: Apache-2.0
// What the scheduler sees and what it decides: plain data. Spans live until Schedule returns.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/types/span.h"

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
  int32_t client = 0;        // index into EngineState::client_service
  uint64_t arrival = 0;      // order of submission; unique
  int32_t steps_waited = 0;  // steps spent waiting since submission
  bool running = false;
  // A decode of which nothing can be planned before its token in flight is known. It keeps its
  // place.
  bool awaits_token = false;
  int32_t tokens_known = 0;     // prompt and generated tokens
  int32_t tokens_computed = 0;  // of those, in the KV cache; less than tokens_known
  // Running: its block table. Waiting: the full blocks of its prefix that the cache has, fewer than
  // its tokens need.
  absl::Span<const int32_t> blocks = {};
  // Running: one block more that it holds until its first own block is a copy of it; -1: none.
  int32_t copy_source = -1;
  // The same number for sequences that would fill the same block next, so that one of them computes
  // it and the others find it in the cache; 0: a block that it shares with nobody.
  uint64_t next_block_label = 0;
};

struct EngineState {
  SchedulerLimits limits;
  // Tokens of prefill in a step that has decodes: as many as keep the step within its time.
  int32_t prefill_tokens_beside_decodes = std::numeric_limits<int32_t>::max();
  int32_t blocks_available = 0;          // free, or cached and held by nobody
  absl::Span<const int32_t> references;  // holders of each block of the pool
  // Tokens computed for each client; of equal priorities the client with less comes first.
  std::vector<int64_t> client_service;
  // Of a step that runs while the plan is made: next_block_label of what it computes. Who would
  // fill such a block waits until it is known to the cache.
  absl::Span<const uint64_t> labels_in_flight = {};
  std::vector<ScheduledSequence> sequences;  // in any order
};

// One sequence's share of a step: its next `token_count` tokens, from tokens_computed on; for one
// that is admitted, from the end of its cached blocks on, which it holds from then.
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
