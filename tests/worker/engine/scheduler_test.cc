// SPDX-License-Identifier: Apache-2.0
// Schedule as a specification. A state is written as one line per sequence:
//   name  priority  running|awaiting|waiting  computed/known  blocks
// and the plan as "name:tokens" (with "+blocks" when blocks are added) after "!name" for each that
// is preempted. Arrival is the order of the lines; a block holds 4 tokens. A running sequence holds
// its blocks; a waiting one has so many in the cache. Blocks are of one sequence alone unless a
// line says which they are.
#include "worker/engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::worker {
namespace {

struct Line {
  char name;
  int priority;
  const char* state;  // "running", "awaiting" a token and running, or "waiting"
  int computed;
  int known;
  int blocks;
  int steps_waited = 0;
  std::vector<int> shared_blocks = {};  // the first of its blocks; numbers from 0 to 9
  int copy_source = -1;
  int client = 0;
  int label = 0;
};

struct Case {
  const char* rule;
  int max_step_tokens;
  int max_sequences;
  int blocks_free;
  std::vector<Line> sequences;
  const char* plan;
  std::vector<int64_t> client_service = {0, 0};
  int prefill_beside_decodes = 1000;
  std::vector<uint64_t> labels_in_flight = {};
};

// The blocks of a line: the shared ones by their numbers, the others by new ones.
std::vector<int32_t> BlocksOf(const Line& line, int32_t& next_block) {
  std::vector<int32_t> blocks(line.shared_blocks.begin(), line.shared_blocks.end());
  while (static_cast<int>(blocks.size()) < line.blocks) blocks.push_back(next_block++);
  return blocks;
}

EngineState StateOf(const Case& c, std::vector<std::vector<int32_t>>& tables,
                    std::vector<int32_t>& references) {
  EngineState state;
  state.limits = {c.max_step_tokens, c.max_sequences, /*block_size=*/4, /*aging_steps=*/100};
  state.blocks_available = c.blocks_free;
  state.client_service = c.client_service;
  state.labels_in_flight = c.labels_in_flight;
  state.prefill_tokens_beside_decodes = c.prefill_beside_decodes;
  references.assign(100, 0);
  int32_t next_block = 10;
  for (const Line& line : c.sequences) tables.push_back(BlocksOf(line, next_block));
  for (size_t i = 0; i < c.sequences.size(); ++i) {
    const Line& line = c.sequences[i];
    ScheduledSequence s;
    s.sequence_id = static_cast<uint64_t>(line.name);
    s.priority = line.priority;
    s.arrival = i;
    s.steps_waited = line.steps_waited;
    s.awaits_token = std::string(line.state) == "awaiting";
    s.running = s.awaits_token || std::string(line.state) == "running";
    s.tokens_known = line.known;
    s.tokens_computed = line.computed;
    s.blocks = tables[i];
    s.copy_source = line.copy_source;
    s.client = line.client;
    s.next_block_label = static_cast<uint64_t>(line.label);
    if (s.running) {
      for (const int32_t block : s.blocks) ++references[block];
      if (s.copy_source >= 0) ++references[s.copy_source];
    }
    state.sequences.push_back(s);
  }
  state.references = references;
  return state;
}

std::string PlanOf(const Case& c) {
  std::vector<std::vector<int32_t>> tables;
  std::vector<int32_t> references;
  const StepPlan plan = Schedule(StateOf(c, tables, references));
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
    {"what the cache has of a prompt is not computed again",
     8,
     4,
     10,
     {{'a', 0, "waiting", 0, 12, 2}},
     "a:4+1"},
    {"cached blocks that nobody holds count as taken once they are used",
     8,
     4,
     3,
     {{'a', 0, "waiting", 0, 12, 2}, {'b', 0, "waiting", 0, 3, 0}},
     "a:4+1"},
    {"cached blocks that somebody holds cost nothing",
     8,
     4,
     2,
     {{'a', 0, "running", 9, 10, 3, 0, {0, 1}},
      {'b', 0, "waiting", 0, 12, 2, 0, {0, 1}},
      {'c', 0, "waiting", 0, 3, 0}},
     "a:1 b:4+1 c:3+1"},
    {"two that are admitted together hold one cached block once",
     8,
     4,
     3,
     {{'a', 0, "waiting", 0, 7, 1, 0, {0}}, {'b', 0, "waiting", 0, 7, 1, 0, {0}}},
     "a:3+1 b:3+1"},
    {"preempting one of two holders frees only what is its own",
     8,
     4,
     0,
     {{'a', 0, "running", 8, 9, 2, 0, {0, 1}},
      {'b', 0, "running", 6, 7, 2, 0, {0}},
      {'c', 0, "running", 6, 7, 2, 0, {0, 1}}},
     "!b !c a:1+1"},
    {"a decode sits out when those below hold nothing alone",
     8,
     4,
     0,
     {{'a', 0, "running", 8, 9, 2, 0, {0, 1}}, {'b', 0, "running", 6, 7, 2, 0, {0, 1}}},
     "b:1"},
    {"a fork gets a block for its copy of the last one",
     8,
     4,
     2,
     {{'a', 0, "running", 6, 7, 2, 0, {0, 1}},
      {'b', 0, "running", 6, 7, 1, 0, {0}, 1},
      {'c', 0, "running", 6, 7, 1, 0, {0}, 1}},
     "a:1 b:1+1 c:1+1"},
    {"forks give back the block they would copy",
     8,
     4,
     0,
     {{'a', 0, "running", 4, 5, 1, 0, {}},
      {'b', 0, "running", 6, 7, 1, 0, {0}, 1},
      {'c', 0, "running", 6, 7, 1, 0, {0}, 1}},
     "!b !c a:1+1"},
    {"one computes a common prefix, the other waits for it, a third is not held up",
     8,
     4,
     10,
     {{'a', 0, "waiting", 0, 5, 0, 0, {}, -1, 0, 7},
      {'b', 0, "waiting", 0, 5, 0, 0, {}, -1, 0, 7},
      {'c', 0, "waiting", 0, 3, 0, 0, {}, -1, 0, 8}},
     "a:5+2 c:3+1"},
    {"a block that the running step fills is waited for",
     8,
     4,
     10,
     {{'a', 0, "running", 4, 9, 3, 0, {}, -1, 0, 9},
      {'b', 0, "waiting", 0, 5, 0, 0, {}, -1, 0, 7},
      {'c', 0, "waiting", 0, 3, 0, 0, {}, -1, 0, 8}},
     "a:5 c:3+1",
     {0, 0},
     1000,
     {7}},
    {"of equal priorities the client that had less goes first",
     8,
     1,
     10,
     {{'a', 0, "waiting", 0, 5, 0, 0, {}, -1, 0}, {'b', 0, "waiting", 0, 5, 0, 0, {}, -1, 1}},
     "b:5+2",
     {100, 20}},
    {"priority goes before what a client had",
     8,
     1,
     10,
     {{'a', 1, "waiting", 0, 5, 0, 0, {}, -1, 0}, {'b', 0, "waiting", 0, 5, 0, 0, {}, -1, 1}},
     "a:5+2",
     {100, 20}},
    {"what a client gets in this step counts at once",
     16,
     4,
     10,
     {{'a', 0, "waiting", 0, 5, 0, 0, {}, -1, 0},
      {'b', 0, "waiting", 0, 5, 0, 0, {}, -1, 0},
      {'c', 0, "waiting", 0, 5, 0, 0, {}, -1, 1},
      {'d', 0, "waiting", 0, 5, 0, 0, {}, -1, 1}},
     "c:5+2 d:5+2 a:5+2 b:1+2",
     {100, 98}},
    {"beside decodes prefill gets what the step's time allows",
     64,
     4,
     10,
     {{'a', 0, "running", 5, 6, 2}, {'b', 0, "waiting", 0, 20, 0}},
     "a:1 b:6+5",
     {0, 0},
     6},
    {"without decodes it gets the whole step",
     64,
     4,
     10,
     {{'b', 0, "waiting", 0, 20, 0}},
     "b:20+5",
     {0, 0},
     6},
    {"who awaits a token is given nothing, the others go on",
     8,
     4,
     10,
     {{'a', 0, "awaiting", 5, 6, 2}, {'b', 0, "running", 5, 6, 2}, {'c', 0, "waiting", 0, 5, 0}},
     "b:1 c:5+2"},
    {"who awaits a token keeps its slot",
     8,
     2,
     10,
     {{'a', 0, "awaiting", 5, 6, 2}, {'b', 0, "running", 5, 6, 2}, {'c', 0, "waiting", 0, 5, 0}},
     "b:1"},
    {"the block that it will need is kept for it",
     8,
     4,
     3,
     {{'a', 0, "awaiting", 8, 9, 2}, {'b', 0, "running", 8, 9, 2}, {'c', 0, "waiting", 0, 6, 0}},
     "b:1+1"},
    {"one that needs no block, or finds none, is no obstacle",
     8,
     4,
     2,
     {{'a', 0, "awaiting", 5, 6, 2}, {'b', 0, "waiting", 0, 6, 0}},
     "b:6+2"},
    {"it may be preempted, with what was kept for it",
     8,
     4,
     1,
     {{'a', 1, "waiting", 0, 12, 0}, {'b', 0, "awaiting", 8, 9, 2}},
     "!b a:8+3"},
    {"a decode that waits for its token bounds prefill, too",
     64,
     4,
     10,
     {{'a', 0, "awaiting", 5, 6, 2}, {'b', 0, "waiting", 0, 20, 0}},
     "b:6+5",
     {0, 0},
     6},
};

TEST(Schedule, ReadsLikeItsSpecification) {
  for (const Case& c : kCases) EXPECT_EQ(PlanOf(c), c.plan) << c.rule;
}

TEST(Schedule, IsAFunctionOfTheStateNotOfItsOrder) {
  EngineState state;
  state.limits.block_size = 4;
  state.blocks_available = 9;
  state.client_service = {0, 5};
  for (uint64_t i = 0; i < 6; ++i) {
    state.sequences.push_back(
        {.sequence_id = i, .client = static_cast<int32_t>(i % 2), .arrival = i, .tokens_known = 7});
  }
  const StepPlan forward = Schedule(state);
  std::reverse(state.sequences.begin(), state.sequences.end());
  EXPECT_EQ(Schedule(state).slices, forward.slices);
  EXPECT_EQ(forward.slices.size(), 4u);
}

}  // namespace
}  // namespace rempart::worker
