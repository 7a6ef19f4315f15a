// SPDX-License-Identifier: Apache-2.0
#include "router/policy/pick.h"

#include <gtest/gtest.h>

namespace rempart::router {
namespace {

struct Row {
  const char* behaviour;
  std::vector<GroupView> groups;
  std::vector<std::string> avoid;
  int expected;  // -1: none
  bool last_chance = false;
};

GroupView Ready(const char* name, int running, int waiting = 0, int unseen = 0, int tokens = 0) {
  return {name, true, true, false, running, waiting, tokens, unseen};
}
GroupView Unsteady(const char* name, int running) {
  return {name, true, true, false, running, 0, 0, 0, false};
}
GroupView Draining(const char* name) { return {name, true, true, true, 0, 0, 0, 0}; }
GroupView Loading(const char* name) { return {name, true, false, false, 0, 0, 0, 0}; }
GroupView Away(const char* name) { return {name, false, true, false, 0, 0, 0, 0}; }

TEST(Pick, Table) {
  const std::vector<Row> rows = {
      {"no group, no choice", {}, {}, -1},
      {"the only ready group", {Ready("a", 9)}, {}, 0},
      {"the group with fewer running", {Ready("a", 3), Ready("b", 2)}, {}, 1},
      {"waiting counts like running", {Ready("a", 1, 2), Ready("b", 2)}, {}, 1},
      {"what is on its way counts", {Ready("a", 0, 0, 2), Ready("b", 1)}, {}, 1},
      {"equal sequences: fewer queued tokens",
       {Ready("a", 1, 0, 0, 500), Ready("b", 1, 0, 0, 20)},
       {},
       1},
      {"equal in all: the first", {Ready("a", 1), Ready("b", 1)}, {}, 0},
      {"draining takes nothing", {Draining("a"), Ready("b", 7)}, {}, 1},
      {"loading takes nothing", {Loading("a"), Ready("b", 7)}, {}, 1},
      {"disconnected takes nothing", {Away("a"), Ready("b", 7)}, {}, 1},
      {"none ready, none chosen", {Draining("a"), Loading("b"), Away("c")}, {}, -1},
      {"a group that failed the request is avoided", {Ready("a", 0), Ready("b", 7)}, {"a"}, 1},
      {"but is better than none", {Ready("a", 0), Draining("b")}, {"a"}, 0},
      {"of two that failed, the less loaded", {Ready("a", 4), Ready("b", 2)}, {"a", "b"}, 1},
      {"one that is not steady is as good", {Unsteady("a", 2), Ready("b", 4)}, {}, 0},
      {"but not for a last chance", {Unsteady("a", 2), Ready("b", 4)}, {}, 1, true},
      {"even if the steady one failed it", {Unsteady("a", 2), Ready("b", 4)}, {"b"}, 1, true},
      {"a last chance waits for a steady group", {Unsteady("a", 0)}, {}, -1, true},
  };
  for (const Row& row : rows) {
    const Decision decision = Pick({row.groups}, {row.avoid, row.last_chance});
    const int chosen = decision.group_index ? static_cast<int>(*decision.group_index) : -1;
    EXPECT_EQ(chosen, row.expected) << row.behaviour;
  }
}

}  // namespace
}  // namespace rempart::router
