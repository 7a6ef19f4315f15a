// SPDX-License-Identifier: Apache-2.0
// Schedule as a specification. A state is written as one line per sequence:
//   name  priority  running|waiting  computed/known  blocks
// and the plan as "name:tokens" (with "+blocks" when blocks are added) after "!name" for each that
// is preempted. Arrival is the order of the lines; a block holds 4 tokens.
#include "worker/engine/scheduler.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::worker {
namespace {

struct Line {
  char name;
  int priority;
  const char* state;  // "running" or "waiting"
  int computed;
  int known;
  int blocks;
  int steps_waited = 0;
};

struct Case {
  const char* rule;
  int max_step_tokens;
  int max_sequences;
  int blocks_free;
  std::vector<Line> sequences;
  const char* plan;
};

std::string PlanOf(const Case& c) {
  EngineState state;
  state.limits = {c.max_step_tokens, c.max_sequences, /*block_size=*/4, /*aging_steps=*/100};
  state.blocks_free = c.blocks_free;
  for (const Line& line : c.sequences) {
    ScheduledSequence s;
    s.sequence_id = static_cast<uint64_t>(line.name);
    s.priority = line.priority;
    s.arrival = state.sequences.size();
    s.steps_waited = line.steps_waited;
    s.running = std::string(line.state) == "running";
    s.tokens_known = line.known;
    s.tokens_computed = line.computed;
    s.blocks_held = line.blocks;
    state.sequences.push_back(s);
  }
  const StepPlan plan = Schedule(state);
  std::vector<std::string> words;
  for (uint64_t id : plan.preempted) words.push_back(absl::StrCat("!", std::string(1, char(id))));
  for (const PlannedSlice& slice : plan.slices) {
    words.push_back(absl::StrCat(
        std::string(1, char(slice.sequence_id)), ":", slice.token_count,
        slice.blocks_to_add > 0 ? absl::StrCat("+", slice.blocks_to_add) : std::string()));
  }
  return absl::StrJoin(words, " ");
}

const Case kCases[] = {
    {"nothing to do, nothing planned", 8, 4, 10, {}, ""},
    {"a waiting prompt is admitted with blocks for all its tokens",
     8,
     4,
     10,
     {{'a', 0, "waiting", 0, 6, 0}},
     "a:6+2"},
    {"a prompt longer than the budget is computed in chunks",
     8,
     4,
     10,
     {{'a', 0, "waiting", 0, 20, 0}},
     "a:8+5"},
    {"the next chunk goes on where the last ended",
     8,
     4,
     5,
     {{'a', 0, "running", 8, 20, 5}},
     "a:8"},
    {"decodes come before prefill, which gets what is left of the budget",
     8,
     4,
     10,
     {{'a', 0, "running", 8, 20, 5}, {'b', 0, "running", 5, 6, 2}, {'c', 0, "running", 9, 10, 3}},
     "a:6 b:1 c:1"},
    {"a decode that crosses a block boundary gets a block",
     8,
     4,
     1,
     {{'a', 0, "running", 8, 9, 2}},
     "a:1+1"},
    {"two prompts share one step",
     8,
     4,
     10,
     {{'a', 0, "waiting", 0, 5, 0}, {'b', 0, "waiting", 0, 5, 0}},
     "a:5+2 b:3+2"},
    {"no more sequences run than allowed",
     8,
     1,
     10,
     {{'a', 0, "running", 5, 6, 2}, {'b', 0, "waiting", 0, 5, 0}},
     "a:1"},
    {"priority goes before arrival",
     8,
     1,
     10,
     {{'a', 0, "waiting", 0, 5, 0}, {'b', 1, "waiting", 0, 5, 0}},
     "b:5+2"},
    {"at equal priority the first to arrive goes first, and nobody overtakes it",
     8,
     4,
     3,
     {{'a', 0, "waiting", 0, 16, 0}, {'b', 0, "waiting", 0, 2, 0}},
     ""},
    {"waiting does not preempt at equal priority",
     8,
     4,
     0,
     {{'a', 0, "running", 5, 6, 2}, {'b', 0, "waiting", 0, 5, 0}},
     "a:1"},
    {"a higher priority takes the slot of a lower one",
     8,
     1,
     10,
     {{'a', 0, "running", 5, 6, 2}, {'b', 1, "waiting", 0, 5, 0}},
     "!a b:5+2"},
    {"a higher priority takes the blocks of as few lower ones as it needs, the last to arrive "
     "first",
     8,
     4,
     0,
     {{'a', 0, "running", 5, 6, 2}, {'b', 0, "running", 5, 6, 2}, {'c', 1, "waiting", 0, 8, 0}},
     "!b c:7+2 a:1"},
    {"a higher priority that would not fit even so preempts nobody",
     8,
     4,
     0,
     {{'a', 2, "running", 5, 6, 2}, {'b', 0, "running", 5, 6, 2}, {'c', 1, "waiting", 0, 16, 0}},
     "a:1 b:1"},
    {"without a free block a decode takes one from the lowest rank",
     8,
     4,
     0,
     {{'a', 0, "running", 8, 9, 2}, {'b', 0, "running", 6, 7, 2}, {'c', 0, "running", 6, 7, 2}},
     "!c a:1+1 b:1"},
    {"the lowest rank itself sits out, and nobody is admitted before it",
     8,
     4,
     0,
     {{'a', 0, "running", 6, 7, 2}, {'b', 0, "running", 8, 9, 2}, {'c', 0, "waiting", 0, 1, 0}},
     "a:1"},
    {"a decode may take the blocks of a prefill of lower rank",
     8,
     4,
     0,
     {{'a', 0, "running", 8, 9, 2}, {'b', 0, "running", 4, 20, 5}},
     "!b a:1+1"},
    {"waiting makes a low priority rise, by one point per aging period",
     8,
     1,
     10,
     {{'a', 0, "waiting", 0, 5, 0, 250}, {'b', 1, "waiting", 0, 5, 0, 0}},
     "a:5+2"},
    {"one that has risen is not preempted by what it rose above",
     8,
     1,
     10,
     {{'a', 0, "running", 5, 6, 2, 250}, {'b', 1, "waiting", 0, 5, 0, 0}},
     "a:1"},
    {"age alone does not preempt: own priority must be higher too",
     8,
     1,
     10,
     {{'a', 0, "running", 5, 6, 2, 0}, {'b', 0, "waiting", 0, 5, 0, 900}},
     "a:1"},
};

TEST(Schedule, ReadsLikeItsSpecification) {
  for (const Case& c : kCases) EXPECT_EQ(PlanOf(c), c.plan) << c.rule;
}

TEST(Schedule, IsAFunctionOfTheStateNotOfItsOrder) {
  EngineState state;
  state.limits.block_size = 4;
  state.blocks_free = 9;
  for (uint64_t i = 0; i < 6; ++i) {
    state.sequences.push_back({.sequence_id = i, .arrival = i, .tokens_known = 7});
  }
  const StepPlan forward = Schedule(state);
  std::reverse(state.sequences.begin(), state.sequences.end());
  EXPECT_EQ(Schedule(state).slices, forward.slices);
}

}  // namespace
}  // namespace rempart::worker
