// SPDX-License-Identifier: Apache-2.0
// The worker's one decision: which tokens of which sequences the next step computes.
//
// Order. Rank is (effective priority, service of the client, arrival); effective priority is the
// request's own plus one point per `aging_steps` steps spent waiting, so that a low priority is
// late but never starves; service is the number of tokens computed for the client, so that of equal
// priorities the client that had less goes first.
//  1. Running sequences with one token left to compute (decodes), in rank order. Of one whose token
//     in flight must be known first nothing is computed, but its slot and the block that it will
//     need are kept.
//  2. With what is left of the token budget, running prefills and waiting sequences in rank order,
//     a long prompt in chunks; each planned chunk counts as service at once. Beside decodes,
//     prefill gets at most prefill_tokens_beside_decodes. A sequence is admitted with blocks for
//     all tokens it has; the first one that cannot be admitted ends the admission, so nobody is
//     overtaken for ever. A sequence whose next block is being filled by one of higher rank in this
//     step, or in the one that runs, waits for it, and is no obstacle to others.
// Blocks. A decode that needs a block when none is available takes it from the running sequence of
// the lowest rank below its own; if there is none below, it sits the step out. A waiting sequence
// may take slots and blocks only from sequences whose own and effective priority are both lower.
// Blocks with several holders become available with the last of them; what a sequence finds in the
// cache it need not be given.
//
// Invariants of the plan:
//  1. Its tokens are at most max_step_tokens; sequences that hold blocks at most max_sequences.
//  2. Blocks to add, and cached ones to hold, are at most what is available once the preempted have
//     given theirs back.
//  3. If any sequence is known whose blocks fit into the pool alone, and whose next block the
//  running
//     step does not fill, the plan is not empty; unless one awaits a token.
// Pure: reads no clock, keeps no state. It requires that each sequence fits the pool on its own.
#pragma once

#include "worker/engine/step_plan.h"

namespace rempart::worker {

StepPlan Schedule(const EngineState& state);

// Blocks that hold `tokens` tokens.
constexpr int32_t BlocksFor(int32_t tokens, int32_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

}  // namespace rempart::worker
