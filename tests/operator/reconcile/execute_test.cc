// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/execute.h"

#include <gtest/gtest.h>

#include <functional>

namespace rempart::op {
namespace {

ModelStatus Status() {
  ModelStatus status;
  status.set_phase("Ready");
  status.set_observed_generation(3);
  auto& ready = *status.add_conditions();
  ready.set_type("Ready");
  ready.set_status("True");
  auto& group = *status.add_groups();
  group.set_name("llama-0");
  group.set_phase("Ready");
  group.add_members()->set_state("Ready");
  return status;
}

using Change = std::function<void(ModelStatus&)>;

bool InSubstance(const Change& change) {
  ModelStatus changed = Status();
  change(changed);
  EXPECT_TRUE(StatusDiffers(Status(), changed));
  return StatusDiffersInSubstance(Status(), changed);
}

TEST(StatusDiffersInSubstance, NotByStatesOfMembersAndExplanations) {
  EXPECT_FALSE(
      InSubstance([](auto& s) { s.mutable_groups(0)->mutable_members(0)->set_state("Silent"); }));
  EXPECT_FALSE(InSubstance([](auto& s) { s.mutable_groups(0)->add_members()->set_pod("b"); }));
  EXPECT_FALSE(InSubstance([](auto& s) { s.mutable_groups(0)->set_waiting_for("rank 1"); }));
  EXPECT_FALSE(InSubstance([](auto& s) { s.mutable_conditions(0)->set_message("1 of 2"); }));
  EXPECT_FALSE(InSubstance([](auto& s) { s.mutable_rollout()->set_message("waits"); }));
}

TEST(StatusDiffersInSubstance, ByWhatSomebodyOrALaterPlanWaitsFor) {
  EXPECT_TRUE(InSubstance([](auto& s) { s.mutable_conditions(0)->set_status("False"); }));
  EXPECT_TRUE(InSubstance([](auto& s) { s.set_observed_generation(4); }));
  EXPECT_TRUE(InSubstance([](auto& s) { s.set_ready_replicas(1); }));
  EXPECT_TRUE(InSubstance([](auto& s) { s.mutable_groups(0)->set_last_failure("lost b"); }));
  EXPECT_TRUE(InSubstance([](auto& s) { s.mutable_groups(0)->set_draining_since("now"); }));
  EXPECT_TRUE(InSubstance([](auto& s) { s.add_suspect_nodes()->set_name("node-1"); }));
  EXPECT_TRUE(InSubstance([](auto& s) { s.mutable_rollout()->set_failed_revision("a"); }));
}

}  // namespace
}  // namespace rempart::op
