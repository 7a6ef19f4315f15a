// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/drain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The status is written, and the orders have reached the leaders, which run `requests`.
void Carry(const Plan& plan, int32_t requests, Observed& observed) {
  *observed.model.mutable_status() = plan.status;
  for (GroupObservation& group : observed.groups) {
    if (plan.drains.count(group.index) == 0) continue;
    group.progress.phase = WorkerPhase::kDraining;
    group.progress.requests = requests;
  }
}

std::vector<int32_t> Draining(const Plan& plan) {
  std::vector<int32_t> groups;
  for (const auto& [index, order] : plan.drains) groups.push_back(index);
  return groups;
}

std::vector<std::string> Deleted(const Plan& plan) {
  std::vector<std::string> pods;
  for (const PodDeletion& deletion : plan.deletions) pods.push_back(deletion.pod);
  return pods;
}

void Scale(int32_t replicas, Observed& observed) {
  observed.model.mutable_spec()->set_replicas(replicas);
}

void AllowDrain(int32_t seconds, Observed& observed) {
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(seconds);
}

// All groups have the template of an edited manifest, and none of its pods.
Observed Outdated(int32_t replicas) {
  Observed observed = Settled(replicas);
  Edit(observed);
  const std::string wanted = Serving(observed, 0).config_hash;
  for (GroupObservation& group : observed.groups) group.set_config_hash = wanted;
  return observed;
}

TEST(Drain, AGroupTooManyFinishesWhatItRunsBeforeItGoes) {
  Observed observed = Settled(2);
  Scale(1, observed);
  Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(1));
  EXPECT_EQ(plan.drains[1].group, "smollm2-1");
  EXPECT_EQ(plan.drains[1].deadline_seconds, 30);
  EXPECT_THAT(plan.removed_groups, IsEmpty());
  EXPECT_EQ(plan.status.groups(1).draining_since(), observed.now);
  EXPECT_EQ(plan.requeue_seconds, 1);
  ASSERT_FALSE(plan.events.empty());
  EXPECT_EQ(plan.events[0].reason, "Draining");
  EXPECT_THAT(plan.events[0].message, HasSubstr("smollm2-1 finishes what it runs, for at most 30"));

  Carry(plan, 2, observed);
  Later(5, observed);
  plan = MakePlan(observed);
  EXPECT_EQ(plan.drains[1].deadline_seconds, 25);
  EXPECT_THAT(plan.removed_groups, IsEmpty());
  EXPECT_THAT(plan.events, IsEmpty()) << "it is told once";

  Carry(plan, 0, observed);
  EXPECT_THAT(MakePlan(observed).removed_groups, ElementsAre("smollm2-1"));
}

TEST(Drain, WhatStillRunsAfterDrainSecondsIsNotWaitedFor) {
  Observed observed = Settled(2);
  Scale(1, observed);
  AllowDrain(10, observed);
  Carry(MakePlan(observed), 2, observed);
  Later(9, observed);
  EXPECT_THAT(MakePlan(observed).removed_groups, IsEmpty());
  Later(1, observed);
  EXPECT_THAT(MakePlan(observed).removed_groups, ElementsAre("smollm2-1"));
}

TEST(Drain, ALeaderThatCannotBeToldIsNotWaitedForLongerThanThat) {
  Observed observed = Settled(2);
  Scale(1, observed);
  observed.groups[1].progress = {};  // no stream; its pod is Ready
  *observed.model.mutable_status() = MakePlan(observed).status;
  Later(29, observed);
  EXPECT_THAT(MakePlan(observed).removed_groups, IsEmpty());
  Later(1, observed);
  EXPECT_THAT(MakePlan(observed).removed_groups, ElementsAre("smollm2-1"));
}

TEST(Drain, WithZeroDrainSecondsAGroupGoesAtOnce) {
  Observed observed = Settled(2);
  Scale(1, observed);
  AllowDrain(0, observed);
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), IsEmpty());
  EXPECT_THAT(plan.removed_groups, ElementsAre("smollm2-1"));
}

TEST(Drain, WhatDoesNotServeHasNothingToFinish) {
  Observed observed = Settled(2);
  Scale(1, observed);
  observed.groups[1].progress.phase = WorkerPhase::kLoading;
  EXPECT_THAT(MakePlan(observed).removed_groups, ElementsAre("smollm2-1"));
}

TEST(Drain, AGroupThatIsWantedAgainIsRevived) {
  Observed observed = Settled(2);
  Scale(1, observed);
  Carry(MakePlan(observed), 2, observed);
  Scale(2, observed);
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(plan.resumes, ElementsAre("smollm2-1"));
  EXPECT_THAT(Draining(plan), IsEmpty());
  EXPECT_THAT(plan.removed_groups, IsEmpty());
  EXPECT_FALSE(plan.status.groups(1).has_draining_since());
  // Drained or not.
  observed.groups[1].progress.requests = 0;
  EXPECT_THAT(MakePlan(observed).resumes, ElementsAre("smollm2-1"));
}

TEST(Drain, WhoIsAskedToEndByOthersIsNotRevived) {
  Observed observed = Settled(2);
  observed.groups[1].progress.phase = WorkerPhase::kDraining;
  observed.groups[1].pods[0].deleting = true;
  EXPECT_THAT(MakePlan(observed).resumes, IsEmpty());
}

TEST(Drain, ARolloutDrainsTheGroupWhoseTurnItIs) {
  Observed observed = Outdated(2);
  Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0));
  EXPECT_THAT(Deleted(plan), IsEmpty());
  Carry(plan, 1, observed);
  plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0));
  EXPECT_THAT(Deleted(plan), IsEmpty());
  Carry(plan, 0, observed);
  plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0)) << "until it is gone";
  EXPECT_THAT(Deleted(plan), ElementsAre("smollm2-0-0"));
}

TEST(Drain, ItsTurnStaysItsTurn) {
  Observed observed = Outdated(2);
  observed.groups[1].progress.phase = WorkerPhase::kDraining;
  observed.groups[1].progress.requests = 1;
  EXPECT_THAT(Draining(MakePlan(observed)), ElementsAre(1));
}

TEST(Drain, AnEditTakenBackRevivesTheGroup) {
  Observed observed = Outdated(1);
  Carry(MakePlan(observed), 1, observed);
  observed.model.mutable_spec()->clear_engine();
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.groups[0].config_hash, observed.groups[0].config_hash);
  EXPECT_THAT(plan.resumes, ElementsAre("smollm2-0"));
  EXPECT_THAT(Deleted(plan), IsEmpty());
}

TEST(Drain, ADrainStopsWhenAnotherGroupBreaks) {
  Observed observed = Outdated(2);
  Carry(MakePlan(observed), 0, observed);
  observed.groups[1].progress.phase = WorkerPhase::kStarting;
  observed.groups[1].pods[0].ready = false;
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(plan.resumes, ElementsAre("smollm2-0"));
  EXPECT_THAT(Deleted(plan), ElementsAre("smollm2-1-0")) << "what does not serve loses nothing";
}

TEST(Drain, WhileItDrainsAGroupIsNotTakenForOneThatDoesNotGetReady) {
  Observed observed = Settled(1);
  observed.nodes = Nodes(2);
  observed.nodes[0].cordoned = true;
  observed.model.mutable_status()->mutable_rollout()->set_progress_time("2026-01-01T00:00:00Z");
  observed.last_good.spec.mutable_engine()->set_context_length(2048);
  observed.last_good.revision = "another";
  Carry(MakePlan(observed), 3, observed);
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0));
  EXPECT_EQ(plan.status.rollout().failed_revision(), "");
}

// Its StatefulSet would let pods go as soon as it has the template.
TEST(Drain, AGroupOfFewerPodsGetsItsTemplateWhenItHasDrained) {
  Observed observed = OneModelOfThreePods();
  observed.groups = {Serving(observed, 0)};
  observed.last_good = *MakePlan(observed).last_good;
  observed.model.mutable_spec()->mutable_parallelism()->set_tensor(1);
  Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0));
  EXPECT_EQ(plan.groups[0].pod_count, 3);
  Carry(plan, 0, observed);
  plan = MakePlan(observed);
  EXPECT_EQ(plan.groups[0].pod_count, 1);
  EXPECT_TRUE(plan.groups[0].apply);
}

TEST(Drain, AGroupDrainsBeforeItsMembersMoveOffACordonedNode) {
  Observed observed = OneModelOfThreePods();
  observed.nodes = Nodes(4);
  observed.groups = {Serving(observed, 0)};
  observed.nodes[2].cordoned = true;
  Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0));
  EXPECT_THAT(Deleted(plan), IsEmpty());
  Carry(plan, 0, observed);
  plan = MakePlan(observed);
  EXPECT_THAT(Deleted(plan), ElementsAre("smollm2-0-2"));
  EXPECT_EQ(plan.deletions[0].grace_seconds, 1) << "a follower has nothing to finish";
  // The leader is not told to go on: its epoch ends with the member.
  EXPECT_THAT(plan.resumes, IsEmpty());
  observed.groups[0].pods[2].deleting = true;
  EXPECT_THAT(MakePlan(observed).resumes, IsEmpty());
  observed.groups[0].pods[2].deleting = false;
  observed.nodes[2].cordoned = false;
  EXPECT_THAT(MakePlan(observed).resumes, ElementsAre("smollm2-0"));
}

TEST(Drain, OneGroupAtATimeMovesAndItDrainsAlone) {
  Observed observed = Settled(2);
  observed.nodes = Nodes(3);
  observed.groups[1].pods[0].node = "node-1";
  observed.nodes[0].cordoned = observed.nodes[1].cordoned = true;
  Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), ElementsAre(0));
  Carry(plan, 1, observed);
  EXPECT_THAT(Draining(MakePlan(observed)), ElementsAre(0));
}

TEST(Drain, ALostMemberIsReplacedWithoutWaiting) {
  Observed observed = OneModelOfThreePods();
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].members.members[1].silent_ms = 6000;
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(Draining(plan), IsEmpty());
  EXPECT_THAT(Deleted(plan), ElementsAre("smollm2-0-1"));
}

TEST(Drain, TheStatusSaysThatAGroupDrains) {
  Observed observed = Outdated(1);
  Carry(MakePlan(observed), 2, observed);
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.groups(0).phase(), "Draining");
  EXPECT_EQ(plan.status.message(), "group smollm2-0 finishes what it runs, then goes on");
}

}  // namespace
}  // namespace rempart::op
