// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/rollout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "operator/plan/recovery.h"
#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The group has been replaced by what the plan says, in `phase`.
void Replace(const Plan& plan, int32_t index, WorkerPhase phase, Observed& observed) {
  GroupObservation& group = observed.groups.at(index);
  group.config_hash = group.set_config_hash = plan.groups.at(index).config_hash;
  for (auto& pod : group.pods) pod.config_hash = group.config_hash;
  group.progress.phase = phase;
}

TEST(Rollout, KeepsAsLastGoodWhatAllGroupsServeWith) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  const Plan plan = MakePlan(observed);
  ASSERT_TRUE(plan.last_good.has_value());
  EXPECT_EQ(plan.last_good->revision, plan.groups[0].config_hash);
  observed.last_good = *plan.last_good;
  EXPECT_FALSE(MakePlan(observed).last_good.has_value());
}

// Words on Join come at once, pods are seen later.
TEST(Rollout, KeepsNothingAsLastGoodBeforeItsPodsAreSeen) {
  Observed observed = Settled(1);
  Edit(observed);
  const Plan plan = MakePlan(observed);
  Replace(plan, 0, WorkerPhase::kReady, observed);
  const std::vector<PodObservation> pods = std::exchange(observed.groups[0].pods, {});
  EXPECT_FALSE(MakePlan(observed).last_good.has_value());
  observed.groups[0].pods = pods;
  EXPECT_TRUE(MakePlan(observed).last_good.has_value());
}

TEST(Rollout, WordsOfAnotherConfigurationNeitherSettleNorRefuseThisOne) {
  Observed observed = Settled(1);
  const std::string old = observed.groups[0].config_hash;
  Edit(observed);
  const Plan plan = MakePlan(observed);
  Replace(plan, 0, WorkerPhase::kReady, observed);
  observed.groups[0].progress.config_hash = old;
  EXPECT_FALSE(MakePlan(observed).last_good.has_value());
  observed.groups[0].progress.phase = WorkerPhase::kFailed;
  observed.groups[0].progress.reason = "InsufficientMemory";
  observed.groups[0].progress.message = "300 MiB are missing";
  EXPECT_EQ(MakePlan(observed).status.rollout().failed_revision(), "");
  observed.groups[0].progress.config_hash = plan.groups[0].config_hash;
  EXPECT_EQ(MakePlan(observed).status.rollout().failed_revision(), plan.groups[0].config_hash);
}

TEST(Rollout, TheLeaderGoesFirstAndItsFollowersWhenItIsGone) {
  Observed observed = OneModelOfThreePods();
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(0);
  observed.groups = {Serving(observed, 0)};
  Edit(observed);
  const Plan applied = MakePlan(observed);
  EXPECT_TRUE(applied.groups[0].apply);
  EXPECT_THAT(applied.deletions, IsEmpty());  // the StatefulSet does not know the template yet
  observed.groups[0].set_config_hash = applied.groups[0].config_hash;
  Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.deletions.size(), 1u);
  EXPECT_EQ(plan.deletions[0].pod, "smollm2-0-0");
  observed.groups[0].pods[0].deleting = true;
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty());
  observed.groups[0].pods.erase(observed.groups[0].pods.begin());
  plan = MakePlan(observed);
  EXPECT_EQ(plan.deletions.size(), 2u);
}

TEST(Rollout, WhatTheWorkerRefusesIsTakenBackAtOnce) {
  Observed observed = Settled(2);
  const std::string good = observed.groups[0].config_hash;
  Edit(observed);
  Plan plan = MakePlan(observed);
  Replace(plan, 0, WorkerPhase::kFailed, observed);
  observed.groups[0].progress.reason = "InsufficientMemory";
  observed.groups[0].progress.message = "300 MiB are missing";
  *observed.model.mutable_status() = plan.status;
  plan = MakePlan(observed);
  EXPECT_EQ(plan.groups[0].config_hash, good);
  EXPECT_EQ(plan.groups[1].config_hash, good);
  EXPECT_THAT(plan.status.rollout().message(), HasSubstr("300 MiB are missing"));
  EXPECT_EQ(plan.events.at(0).reason, "RolledBack");
  // It stays so, and is told once.
  Replace(plan, 0, WorkerPhase::kReady, observed);
  *observed.model.mutable_status() = plan.status;
  plan = MakePlan(observed);
  EXPECT_EQ(plan.groups[0].config_hash, good);
  EXPECT_EQ(ConditionOf(plan, "Degraded").reason(), "RolledBack");
  for (const PlannedEvent& event : plan.events)
    EXPECT_NE(event.message, plan.status.rollout().message());
  // Another edit is another try.
  Edit(observed, 2048);
  EXPECT_NE(MakePlan(observed).groups[0].config_hash, good);
}

TEST(Rollout, WhatDoesNotBecomeReadyInTimeIsTakenBack) {
  Observed observed = Settled(1);
  const std::string good = observed.groups[0].config_hash;
  observed.model.mutable_spec()->mutable_rollout()->set_progress_deadline_seconds(30);
  Edit(observed);
  Plan plan = MakePlan(observed);
  Replace(plan, 0, WorkerPhase::kLoading, observed);
  *observed.model.mutable_status() = plan.status;
  Later(29, observed);
  EXPECT_NE(MakePlan(observed).groups[0].config_hash, good);
  Later(2, observed);
  plan = MakePlan(observed);
  EXPECT_EQ(plan.groups[0].config_hash, good);
  *observed.model.mutable_status() = plan.status;
  (*observed.model.mutable_metadata()->mutable_annotations())[kRetryAnnotation] = "again";
  EXPECT_NE(MakePlan(observed).groups[0].config_hash, good);
}

TEST(Rollout, AFirstConfigurationHasNothingToGoBackTo) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].progress.phase = WorkerPhase::kFailed;
  observed.groups[0].progress.reason = "InvalidModelFile";
  Later(10000, observed);
  EXPECT_EQ(MakePlan(observed).status.rollout().failed_revision(), "");
}

TEST(Rollout, PausedReplacesNothingAndPartitionOnlyTheRest) {
  Observed observed = Settled(3);
  const std::string good = observed.groups[0].config_hash;
  Edit(observed);
  observed.model.mutable_spec()->mutable_rollout()->set_paused(true);
  Plan plan = MakePlan(observed);
  for (const GroupPlan& group : plan.groups) EXPECT_EQ(group.config_hash, good);
  EXPECT_THAT(plan.status.rollout().message(), HasSubstr("paused"));
  observed.model.mutable_spec()->mutable_rollout()->set_paused(false);
  observed.model.mutable_spec()->mutable_rollout()->set_partition(2);
  plan = MakePlan(observed);
  EXPECT_EQ(plan.groups[0].config_hash, good);
  EXPECT_EQ(plan.groups[1].config_hash, good);
  EXPECT_NE(plan.groups[2].config_hash, good);
}

TEST(Rollout, SurgeStartsOneMoreGroupFirstAndEndsItLast) {
  Observed observed = Settled(1);
  observed.model.mutable_spec()->mutable_rollout()->set_strategy("SurgeThenDrain");
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(0);
  EXPECT_EQ(MakePlan(observed).groups.size(), 1u);
  Edit(observed);
  Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.groups.size(), 2u);
  EXPECT_EQ(plan.groups[0].config_hash, observed.groups[0].config_hash);
  // The new one serves: the old one's turn.
  GroupObservation spare = observed.groups[0];
  spare.index = 1;
  spare.config_hash = spare.set_config_hash = plan.groups[1].config_hash;
  for (auto& pod : spare.pods) pod.config_hash = spare.config_hash;
  observed.groups.push_back(spare);
  plan = MakePlan(observed);
  EXPECT_NE(plan.groups[0].config_hash, observed.groups[0].config_hash);
  EXPECT_THAT(plan.removed_groups, IsEmpty());
  Replace(plan, 0, WorkerPhase::kLoading, observed);
  EXPECT_THAT(MakePlan(observed).removed_groups, IsEmpty());
  observed.groups[0].progress.phase = WorkerPhase::kReady;
  EXPECT_THAT(MakePlan(observed).removed_groups, ElementsAre("smollm2-1"));
}

TEST(Rollout, ARefusedEditLeavesTheLastGoodConfigurationRunning) {
  Observed observed = Settled(1);
  observed.model.mutable_spec()->mutable_autoscaling()->set_max(2);
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(plan.groups[0].config_hash, observed.groups[0].config_hash);
  EXPECT_EQ(ConditionOf(plan, "Accepted").status(), "False");
}

}  // namespace
}  // namespace rempart::op
