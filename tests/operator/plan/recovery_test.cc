// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/recovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

Observed ServingThree() {
  Observed observed = OneModelOfThreePods();
  observed.groups = {Serving(observed, 0)};
  return observed;
}

// What the next look sees of the status that this plan has written.
void Written(const Plan& plan, Observed& observed) {
  *observed.model.mutable_status() = plan.status;
}

void End(int32_t epoch, const std::string& pod, Observed& observed) {
  auto& members = observed.groups[0].members;
  members.running = false;
  members.ending = {epoch, absl::StrCat("lost ", pod), {pod}, 900, 0};
}

std::string EventsOf(const Plan& plan) {
  std::string reasons;
  for (const PlannedEvent& event : plan.events) absl::StrAppend(&reasons, event.reason, " ");
  return reasons;
}

TEST(Recovery, LeavesAGroupThatServesAlone) {
  const Plan plan = MakePlan(ServingThree());
  EXPECT_THAT(plan.deletions, IsEmpty());
  EXPECT_THAT(plan.releases, IsEmpty());
}

TEST(Recovery, ALostMemberIsCountedOnceAndNamed) {
  Observed observed = ServingThree();
  End(7, "smollm2-0-2", observed);
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(EventsOf(plan), HasSubstr("MemberLost"));
  EXPECT_EQ(plan.events[0].message,
            "group smollm2-0 lost rank 2 (pod smollm2-0-2 on node node-2), noticed after 900 ms: "
            "lost smollm2-0-2");
  ASSERT_EQ(plan.status.suspect_nodes_size(), 1);
  EXPECT_EQ(plan.status.suspect_nodes(0).name(), "node-2");
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
  Written(plan, observed);
  const Plan again = MakePlan(observed);
  EXPECT_THAT(EventsOf(again), Not(HasSubstr("MemberLost")));
  EXPECT_EQ(again.status.groups(0).failures(), 1);
}

TEST(Recovery, ANodeSuspectedTwiceIsExcludedUntilSomebodySaysRetry) {
  Observed observed = ServingThree();
  for (int32_t epoch : {7, 8}) {
    End(epoch, "smollm2-0-2", observed);
    const Plan plan = MakePlan(observed);
    EXPECT_EQ(plan.status.suspect_nodes(0).excluded(), epoch == 8);
    EXPECT_EQ(EventsOf(plan).find("NodeExcluded") != std::string::npos, epoch == 8);
    Written(plan, observed);
    Later(60, observed);
  }
  (*observed.model.mutable_metadata()->mutable_annotations())["rempart.dev/retry"] = "1";
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.suspect_nodes_size(), 0);
  EXPECT_EQ(plan.status.groups(0).failures(), 0);
  EXPECT_EQ(plan.status.retry(), "1");
}

TEST(Recovery, NobodyIsSuspectedWhenAllAreLostAtOnce) {
  Observed observed = ServingThree();
  End(7, "", observed);
  observed.groups[0].members.ending.blamed_pods = {"smollm2-0-0", "smollm2-0-1", "smollm2-0-2"};
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.suspect_nodes_size(), 0);
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
}

TEST(Recovery, AReplacementByHandIsNoFailure) {
  Observed observed = ServingThree();
  observed.groups[0].pods[1].age_seconds = 2;
  End(7, "smollm2-0-1", observed);
  EXPECT_EQ(MakePlan(observed).status.groups(0).failures(), 0);
}

TEST(Recovery, AYoungMemberThatBreaksIsNamedAsWell) {
  Observed observed = ServingThree();
  observed.groups[0].pods[1].age_seconds = 5;
  End(7, "smollm2-0-1", observed);
  observed.groups[0].members.ending.age_ms = 1000;
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.groups(0).last_failure(), "lost smollm2-0-1");
  // It has come since: what broke was deleted before.
  observed.groups[0].members.ending.age_ms = 6000;
  EXPECT_EQ(MakePlan(observed).status.groups(0).failures(), 0);
}

TEST(Recovery, AMemberThatSaysWhichPodItWasIsNamedHoweverYoung) {
  Observed observed = ServingThree();
  PodObservation& pod = observed.groups[0].pods[1];
  pod.age_seconds = 1;
  pod.uid = "a";
  End(7, "smollm2-0-1", observed);
  observed.groups[0].members.ending.blamed_pod_uids = {"a"};
  EXPECT_EQ(MakePlan(observed).status.groups(0).last_failure(), "lost smollm2-0-1");
  // Another has its place and name since, and may be as old as can be.
  pod.age_seconds = 500;
  pod.uid = "b";
  EXPECT_EQ(MakePlan(observed).status.groups(0).failures(), 0);
  EXPECT_EQ(MakePlan(observed).status.suspect_nodes_size(), 0);
}

TEST(Recovery, WhoIsToBlameMayBeLearnedAfterTheEnd) {
  Observed observed = ServingThree();
  End(7, "smollm2-0-2", observed);
  observed.groups[0].members.ending.blamed_pods.clear();
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.groups(0).failures(), 0);
  Written(plan, observed);
  End(7, "smollm2-0-2", observed);
  const Plan later = MakePlan(observed);
  EXPECT_EQ(later.status.groups(0).failures(), 1);
  EXPECT_EQ(later.status.groups(0).last_failure(), "lost smollm2-0-2");
}

TEST(Recovery, ASilentMemberIsReplacedWhileOthersAreHeard) {
  Observed observed = ServingThree();
  observed.groups[0].members.members[2].silent_ms = 4000;
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
  EXPECT_EQ(MakePlan(observed).status.groups(0).members(2).state(), "Silent");
  observed.groups[0].members.members[2].silent_ms = 6000;
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.deletions.size(), 1u);
  EXPECT_EQ(plan.deletions[0].pod, "smollm2-0-2");
  EXPECT_EQ(plan.deletions[0].grace_seconds, 1);
  // The operator itself may be the one that is cut off.
  for (auto& member : observed.groups[0].members.members) member.silent_ms = 6000;
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
}

TEST(Recovery, APodThatItsNodeDoesNotEndIsRemovedWithoutIt) {
  Observed observed = ServingThree();
  auto& pod = observed.groups[0].pods[2];
  pod.deleting = true;
  pod.overdue_seconds = 2;
  observed.groups[0].members.members[2].silent_ms = 9000;
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
  pod.overdue_seconds = 4;
  ASSERT_EQ(MakePlan(observed).deletions.size(), 1u);
  EXPECT_EQ(MakePlan(observed).deletions[0].grace_seconds, 0);
}

// Half the cluster is cut off: only one node of it was blamed, and none is called not ready yet.
TEST(Recovery, ANodeThatDoesNotEndAPodIsSuspectedOnce) {
  Observed observed = ServingThree();
  auto& pod = observed.groups[0].pods[2];
  pod.deleting = true;
  pod.overdue_seconds = 4;
  observed.groups[0].members.members[2].silent_ms = 9000;
  for (int i = 0; i < 3; ++i) {
    const Plan plan = MakePlan(observed);
    ASSERT_EQ(plan.status.suspect_nodes_size(), 1);
    EXPECT_EQ(plan.status.suspect_nodes(0).name(), pod.node);
    EXPECT_EQ(plan.status.suspect_nodes(0).count(), 1);
    EXPECT_FALSE(plan.status.suspect_nodes(0).excluded());
    Written(plan, observed);
  }
}

TEST(Recovery, ALostNodeCountsOnlyWhenItsMemberIsSilentToo) {
  Observed observed = ServingThree();
  observed.nodes[1].ready = false;
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
  observed.groups[0].members.members[1].silent_ms = 6000;
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.deletions.size(), 1u);
  EXPECT_THAT(plan.deletions[0].why, HasSubstr("node-1 does not answer"));
  // An operator that has just begun has heard nobody yet.
  observed.listening_seconds = 2;
  observed.groups[0].members.members.clear();
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
}

TEST(Recovery, GivesUpAfterItsBudgetAndSaysHowToGoOn) {
  Observed observed = ServingThree();
  observed.groups[0].progress.phase = WorkerPhase::kUnknown;
  for (auto& pod : observed.groups[0].pods) pod.ready = false;
  Plan plan;
  for (int32_t epoch = 7; epoch <= 7 + kFailureBudget; ++epoch) {
    End(epoch, "smollm2-0-1", observed);
    observed.groups[0].members.members[1].silent_ms = 6000;
    plan = MakePlan(observed);
    Written(plan, observed);
    Later(100, observed);
  }
  EXPECT_EQ(plan.status.groups(0).failures(), kFailureBudget + 1);
  EXPECT_THAT(plan.deletions, IsEmpty());
  EXPECT_EQ(ConditionOf(plan, "Stalled").reason(), "FailureBudgetSpent");
  EXPECT_THAT(plan.status.message(),
              HasSubstr("kubectl annotate model smollm2 rempart.dev/retry="));
  (*observed.model.mutable_metadata()->mutable_annotations())["rempart.dev/retry"] = "now";
  EXPECT_EQ(MakePlan(observed).deletions.size(), 1u);
}

TEST(Recovery, PodsBehindTheirGateAreReleasedTogether) {
  Observed observed = ServingThree();
  GroupObservation& group = observed.groups[0];
  group.progress = {};
  group.members = {};
  for (auto& pod : group.pods) {
    pod.gated = true;
    pod.node.clear();
    pod.ready = false;
    pod.phase = "Pending";
  }
  EXPECT_EQ(MakePlan(observed).releases.size(), 3u);
  // Not before all are there.
  const PodObservation last = group.pods.back();
  group.pods.pop_back();
  EXPECT_THAT(MakePlan(observed).releases, IsEmpty());
  group.pods.push_back(last);
  // Not when one finds no room.
  for (auto& node : observed.nodes) node.requested = {{"cpu", 3000}};
  observed.nodes[0].requested = {{"cpu", 3500}};
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(plan.releases, IsEmpty());
  EXPECT_EQ(ConditionOf(plan, "Fits").status(), "False");
  EXPECT_EQ(ConditionOf(plan, "Fits").reason(), "NoRoom");
  EXPECT_THAT(plan.status.message(), HasSubstr("node-0: 0.5 CPU free, 0.5 CPU missing"));
}

TEST(Recovery, OnlyTheReplacementIsPlacedWhenOneIsMissing) {
  Observed observed = ServingThree();
  auto& pod = observed.groups[0].pods[1];
  pod.gated = true;
  pod.node.clear();
  observed.groups[0].progress.phase = WorkerPhase::kStarting;
  auto& suspect = *observed.model.mutable_status()->add_suspect_nodes();
  suspect.set_name("node-1");
  suspect.set_last_time(observed.now);
  suspect.set_count(1);
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.releases.size(), 1u);
  EXPECT_EQ(plan.releases[0].pod, "smollm2-0-1");
  EXPECT_NE(plan.releases[0].node, "node-1");
}

TEST(Recovery, ACordonedNodesMembersMoveWhenThereIsRoom) {
  Observed observed = ServingThree();
  observed.nodes = Nodes(4);
  observed.nodes[2].cordoned = true;
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(0);
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.deletions.size(), 1u);
  EXPECT_EQ(plan.deletions[0].pod, "smollm2-0-2");
  EXPECT_FALSE(plan.deletions[0].grace_seconds.has_value());
  for (auto& node : observed.nodes) node.requested = {{"cpu", 3500}};
  const Plan full = MakePlan(observed);
  EXPECT_THAT(full.deletions, IsEmpty());
  EXPECT_EQ(ConditionOf(full, "Degraded").reason(), "NodeCordoned");
  EXPECT_EQ(ConditionOf(full, "Ready").status(), "True");
  EXPECT_THAT(full.status.message(), HasSubstr("node node-2 is cordoned"));
}

// The scheduler may put it back: what is a wish to it is no reason to delete without end.
TEST(Recovery, ASinglePodIsMovedOffAnExcludedNodeOnce) {
  Observed observed = OneModel();
  observed.nodes = Nodes(2);
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].progress.phase = WorkerPhase::kLoading;
  auto& suspect = *observed.model.mutable_status()->add_suspect_nodes();
  suspect.set_name("node-0");
  suspect.set_count(2);
  suspect.set_last_time(observed.now);
  suspect.set_excluded(true);
  Later(60, observed);
  EXPECT_EQ(MakePlan(observed).deletions.size(), 1u);
  observed.groups[0].pods[0].age_seconds = 5;
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
}

}  // namespace
}  // namespace rempart::op
