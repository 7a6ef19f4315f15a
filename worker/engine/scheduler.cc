// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/scheduler.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_set.h"

namespace rempart::worker {
namespace {

// One sequence while the plan is made.
struct Candidate {
  const ScheduledSequence* sequence;
  int64_t effective_priority;
  bool running;
  bool preempted = false;
  int32_t tokens_computed;
  int32_t planned_tokens = 0;
  int32_t planned_blocks = 0;
};

// A candidate's place among those that prefill, as it was when it took it.
struct Place {
  int64_t effective_priority;
  int64_t service;
  uint64_t arrival;
  size_t index;  // into ranked
};

bool IsBehind(const Place& a, const Place& b) {
  if (a.effective_priority != b.effective_priority) {
    return a.effective_priority < b.effective_priority;
  }
  if (a.service != b.service) return a.service > b.service;
  return a.arrival > b.arrival;
}

struct Planner {
  const SchedulerLimits& limits;
  std::vector<int32_t> references;  // as the plan would leave them
  std::vector<int64_t> service;     // with what the plan gives
  int32_t tokens_left;
  int32_t blocks_available;
  std::vector<Candidate> ranked = {};  // best rank first
  int32_t running_count = 0;
  bool has_decodes = false;
  absl::flat_hash_set<uint64_t> labels = {};  // of blocks that the plan fills

  int32_t Remaining(const Candidate& c) const {
    return c.sequence->tokens_known - c.tokens_computed;
  }
  int32_t BlocksNeeded(const Candidate& c) const {
    return BlocksFor(c.sequence->tokens_known, limits.block_size) -
           static_cast<int32_t>(c.sequence->blocks.size()) - c.planned_blocks;
  }
  Place PlaceOf(size_t index) const {
    const Candidate& c = ranked[index];
    return {c.effective_priority, service[c.sequence->client], c.sequence->arrival, index};
  }
  void Rank(const EngineState& state);
  void Plan(Candidate& c, int32_t blocks_to_add);
  void KeepBlocks(Candidate& c, int32_t blocks_needed);
  int32_t GiveBack(const Candidate& victim);
  void TakeBack(const Candidate& victim);
  void Preempt(const std::vector<size_t>& victims);
  bool TakeBlocksFromBelow(size_t index, int32_t blocks_needed);
  bool Admit(size_t index);
  void PlanDecodes();
  void PlanPrefills();
};

void Planner::Rank(const EngineState& state) {
  ranked.reserve(state.sequences.size());
  for (const ScheduledSequence& sequence : state.sequences) {
    const int64_t aged =
        sequence.priority + int64_t{sequence.steps_waited} / state.limits.aging_steps;
    ranked.push_back({.sequence = &sequence,
                      .effective_priority = aged,
                      .running = sequence.running,
                      .tokens_computed = sequence.tokens_computed});
    if (sequence.running) ++running_count;
  }
  std::sort(ranked.begin(), ranked.end(), [this](const Candidate& a, const Candidate& b) {
    const auto place = [this](const Candidate& c) {
      return Place{c.effective_priority, service[c.sequence->client], c.sequence->arrival, 0};
    };
    return IsBehind(place(b), place(a));
  });
}

void Planner::Plan(Candidate& c, int32_t blocks_to_add) {
  c.planned_tokens = std::min(tokens_left, Remaining(c));
  c.planned_blocks = blocks_to_add;
  tokens_left -= c.planned_tokens;
  blocks_available -= blocks_to_add;
}

// For its next step, which is not planned yet: as far as there are any.
void Planner::KeepBlocks(Candidate& c, int32_t blocks_needed) {
  c.planned_blocks = std::clamp(blocks_needed, 0, std::max(blocks_available, 0));
  blocks_available -= c.planned_blocks;
}

// Lets the victim's holds go. Returns how many blocks that makes available.
int32_t Planner::GiveBack(const Candidate& victim) {
  int32_t count = victim.planned_blocks;
  for (const int32_t block : victim.sequence->blocks) count += --references[block] == 0 ? 1 : 0;
  const int32_t source = victim.sequence->copy_source;
  if (source >= 0) count += --references[source] == 0 ? 1 : 0;
  return count;
}

void Planner::TakeBack(const Candidate& victim) {
  for (const int32_t block : victim.sequence->blocks) ++references[block];
  if (victim.sequence->copy_source >= 0) ++references[victim.sequence->copy_source];
}

// The victims have given back.
void Planner::Preempt(const std::vector<size_t>& victims) {
  for (const size_t index : victims) {
    Candidate& victim = ranked[index];
    tokens_left += victim.planned_tokens;
    victim.planned_tokens = victim.planned_blocks = 0;
    victim.running = false;
    victim.preempted = true;
    --running_count;
  }
}

// For a running sequence: preempts running sequences of lower rank until the blocks are there.
// False, and nobody preempted, when all of them together do not hold enough.
bool Planner::TakeBlocksFromBelow(size_t index, int32_t blocks_needed) {
  int32_t reachable = blocks_available;
  std::vector<size_t> victims;
  for (size_t i = ranked.size() - 1; i > index && reachable < blocks_needed; --i) {
    if (!ranked[i].running) continue;
    reachable += GiveBack(ranked[i]);
    victims.push_back(i);
  }
  if (reachable < blocks_needed) {
    for (const size_t victim : victims) TakeBack(ranked[victim]);
    return false;
  }
  blocks_available = reachable;
  Preempt(victims);
  return true;
}

// For a waiting sequence: a slot and blocks, if need be from sequences of lower priority. All or
// nothing.
bool Planner::Admit(size_t index) {
  Candidate& c = ranked[index];
  const absl::Span<const int32_t> cached = c.sequence->blocks;
  const int32_t to_add = BlocksNeeded(c);
  // Cached blocks that nobody holds are available until this sequence holds them.
  const auto needed = [&] {
    int32_t count = to_add;
    for (const int32_t block : cached) count += references[block] == 0 ? 1 : 0;
    return count;
  };
  int32_t slots = limits.max_sequences - running_count;
  int32_t reachable = blocks_available;
  std::vector<size_t> victims;
  for (size_t i = ranked.size(); i-- > 0 && (slots < 1 || reachable < needed());) {
    const Candidate& victim = ranked[i];
    if (!victim.running || victim.sequence->priority >= c.sequence->priority ||
        victim.effective_priority >= c.effective_priority) {
      continue;
    }
    victims.push_back(i);
    reachable += GiveBack(victim);
    ++slots;
  }
  const int32_t blocks_needed = needed();
  if (slots < 1 || reachable < blocks_needed) {
    for (const size_t victim : victims) TakeBack(ranked[victim]);
    return false;
  }
  Preempt(victims);
  blocks_available = reachable - (blocks_needed - to_add);
  for (const int32_t block : cached) ++references[block];
  c.running = true;
  c.tokens_computed = static_cast<int32_t>(cached.size()) * limits.block_size;
  ++running_count;
  Plan(c, to_add);
  return true;
}

void Planner::PlanDecodes() {
  for (size_t i = 0; i < ranked.size() && tokens_left > 0; ++i) {
    Candidate& c = ranked[i];
    if (!c.running || Remaining(c) != 1) continue;
    const int32_t needed = BlocksNeeded(c);
    if (c.sequence->awaits_token) {
      KeepBlocks(c, needed);
    } else if (needed <= blocks_available || TakeBlocksFromBelow(i, needed)) {
      Plan(c, std::max(needed, 0));
    }
    has_decodes |= c.sequence->awaits_token || c.planned_tokens > 0;
  }
}

void Planner::PlanPrefills() {
  std::vector<Place> places;
  bool admitting = true;
  for (size_t i = 0; i < ranked.size(); ++i) {
    const Candidate& c = ranked[i];
    if (c.preempted || c.planned_tokens > 0 || c.sequence->awaits_token) continue;
    if (!c.running || Remaining(c) > 1) places.push_back(PlaceOf(i));
    // A decode that sits out has the first claim on freed blocks.
    if (c.running && Remaining(c) == 1) admitting = false;
  }
  std::priority_queue<Place, std::vector<Place>, bool (*)(const Place&, const Place&)> queue(
      IsBehind, std::move(places));
  while (!queue.empty() && tokens_left > 0) {
    const Place place = queue.top();
    queue.pop();
    Candidate& c = ranked[place.index];
    if (c.preempted || (!c.running && !admitting)) continue;
    const uint64_t label = c.sequence->next_block_label;
    if (label != 0 && labels.contains(label)) continue;
    if (const Place now = PlaceOf(place.index); now.service != place.service) {
      queue.push(now);
      continue;
    }
    if (c.running) {
      Plan(c, 0);  // admitted with blocks for all its tokens
    } else if (!Admit(place.index)) {
      admitting = false;
      continue;
    }
    service[c.sequence->client] += c.planned_tokens;
    if (label != 0) labels.insert(label);
  }
}

}  // namespace

StepPlan Schedule(const EngineState& state) {
  Planner planner{state.limits,
                  {state.references.begin(), state.references.end()},
                  state.client_service,
                  state.limits.max_step_tokens,
                  state.blocks_available};
  planner.labels.insert(state.labels_in_flight.begin(), state.labels_in_flight.end());
  planner.Rank(state);
  planner.PlanDecodes();
  if (planner.has_decodes) {
    planner.tokens_left = std::min(planner.tokens_left, state.prefill_tokens_beside_decodes);
  }
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
