// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/scheduler.h"

#include <algorithm>

namespace rempart::worker {
namespace {

// One sequence while the plan is made.
struct Candidate {
  const ScheduledSequence* sequence;
  int64_t effective_priority;
  bool running;
  bool preempted = false;
  int32_t blocks_held;
  int32_t planned_tokens = 0;
  int32_t planned_blocks = 0;
};

struct Planner {
  const SchedulerLimits& limits;
  std::vector<Candidate> ranked;  // best rank first
  int32_t tokens_left;
  int32_t blocks_free;
  int32_t running_count;

  int32_t Remaining(const Candidate& c) const {
    return c.sequence->tokens_known - c.sequence->tokens_computed;
  }
  void Plan(Candidate& c, int32_t blocks_to_add);
  void Preempt(Candidate& victim);
  bool TakeBlocksFromBelow(size_t index, int32_t blocks_needed);
  bool MakeRoomFor(size_t index, int32_t blocks_needed);
  void PlanDecodes();
  void PlanPrefills();
};

void Planner::Plan(Candidate& c, int32_t blocks_to_add) {
  c.planned_tokens = std::min(tokens_left, Remaining(c));
  c.planned_blocks = blocks_to_add;
  tokens_left -= c.planned_tokens;
  blocks_free -= blocks_to_add;
  c.blocks_held += blocks_to_add;
}

void Planner::Preempt(Candidate& victim) {
  tokens_left += victim.planned_tokens;
  blocks_free += victim.blocks_held;
  victim.planned_tokens = victim.planned_blocks = victim.blocks_held = 0;
  victim.running = false;
  victim.preempted = true;
  --running_count;
}

// For a running sequence: preempts running sequences of lower rank until the blocks are there.
// False, and nobody preempted, when all of them together do not hold enough.
bool Planner::TakeBlocksFromBelow(size_t index, int32_t blocks_needed) {
  int32_t reachable = blocks_free;
  for (size_t i = index + 1; i < ranked.size(); ++i) reachable += ranked[i].blocks_held;
  if (reachable < blocks_needed) return false;
  for (size_t i = ranked.size() - 1; blocks_free < blocks_needed; --i) {
    if (ranked[i].running) Preempt(ranked[i]);
  }
  return true;
}

// For a waiting sequence: a slot and blocks, if need be from sequences of lower priority. All or
// nothing.
bool Planner::MakeRoomFor(size_t index, int32_t blocks_needed) {
  const Candidate& c = ranked[index];
  int32_t slots = limits.max_sequences - running_count;
  int32_t blocks = blocks_free;
  std::vector<size_t> victims;
  for (size_t i = ranked.size() - 1; i > index && (slots < 1 || blocks < blocks_needed); --i) {
    const Candidate& victim = ranked[i];
    if (!victim.running || victim.sequence->priority >= c.sequence->priority ||
        victim.effective_priority >= c.effective_priority) {
      continue;
    }
    victims.push_back(i);
    blocks += victim.blocks_held;
    ++slots;
  }
  if (slots < 1 || blocks < blocks_needed) return false;
  for (size_t victim : victims) Preempt(ranked[victim]);
  return true;
}

void Planner::PlanDecodes() {
  for (size_t i = 0; i < ranked.size() && tokens_left > 0; ++i) {
    Candidate& c = ranked[i];
    if (!c.running || Remaining(c) != 1) continue;
    const int32_t needed = BlocksFor(c.sequence->tokens_known, limits.block_size) - c.blocks_held;
    if (needed <= 0 || TakeBlocksFromBelow(i, needed)) Plan(c, std::max(needed, 0));
  }
}

void Planner::PlanPrefills() {
  bool admitting = true;
  for (size_t i = 0; i < ranked.size() && tokens_left > 0; ++i) {
    Candidate& c = ranked[i];
    if (c.preempted || c.planned_tokens > 0 || (!c.running && !admitting)) continue;
    const int32_t needed = BlocksFor(c.sequence->tokens_known, limits.block_size) - c.blocks_held;
    if (c.running) {
      if (Remaining(c) == 1 && needed > blocks_free) {
        admitting = false;  // a decode that sits out has the first claim on freed blocks
      } else if (needed <= 0 || TakeBlocksFromBelow(i, needed)) {
        Plan(c, std::max(needed, 0));
      }
    } else if (MakeRoomFor(i, needed)) {
      c.running = true;
      ++running_count;
      Plan(c, needed);
    } else {
      admitting = false;
    }
  }
}

}  // namespace

StepPlan Schedule(const EngineState& state) {
  Planner planner{state.limits, {}, state.limits.max_step_tokens, state.blocks_free, 0};
  planner.ranked.reserve(state.sequences.size());
  for (const ScheduledSequence& sequence : state.sequences) {
    const int64_t aged =
        sequence.priority + int64_t{sequence.steps_waited} / state.limits.aging_steps;
    planner.ranked.push_back({.sequence = &sequence,
                              .effective_priority = aged,
                              .running = sequence.running,
                              .blocks_held = sequence.blocks_held});
    if (sequence.running) ++planner.running_count;
  }
  std::sort(planner.ranked.begin(), planner.ranked.end(),
            [](const Candidate& a, const Candidate& b) {
              if (a.effective_priority != b.effective_priority) {
                return a.effective_priority > b.effective_priority;
              }
              return a.sequence->arrival < b.sequence->arrival;
            });
  planner.PlanDecodes();
  planner.PlanPrefills();

  StepPlan plan;
  for (const Candidate& c : planner.ranked) {
    if (c.preempted) plan.preempted.push_back(c.sequence->sequence_id);
    if (c.planned_tokens > 0) {
      plan.slices.push_back({c.sequence->sequence_id, c.planned_tokens, c.planned_blocks});
    }
  }
  return plan;
}

}  // namespace rempart::worker
