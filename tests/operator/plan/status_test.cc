// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

GroupObservation Failing(const std::string& reason, const std::string& message) {
  GroupObservation group;
  group.exists = true;
  group.progress.phase = WorkerPhase::kFailed;
  group.progress.reason = reason;
  group.progress.message = message;
  return group;
}

struct FailureRow {
  std::string reason;
  std::string condition;
};

TEST(Status, TheWorkersFailureFalsifiesTheConditionItBelongsTo) {
  for (const FailureRow& row :
       std::vector<FailureRow>{{"InvalidModelFile", "WeightsAvailable"},
                               {"WeightsNotFound", "WeightsAvailable"},
                               {"UnsupportedArchitecture", "WeightsAvailable"},
                               {"InsufficientMemory", "Fits"},
                               {"DeviceUnavailable", "Fits"}}) {
    Observed observed = OneModel();
    observed.groups = {Failing(row.reason, "say what to do")};
    const Plan plan = MakePlan(observed);
    EXPECT_EQ(ConditionOf(plan, row.condition).status(), "False") << row.reason;
    EXPECT_EQ(ConditionOf(plan, row.condition).reason(), row.reason);
    EXPECT_EQ(ConditionOf(plan, "Ready").status(), "False");
    EXPECT_EQ(ConditionOf(plan, "Stalled").status(), "True");
    EXPECT_EQ(plan.status.phase(), "Failed");
    EXPECT_EQ(plan.status.message(), "say what to do");
  }
}

struct EndRow {
  std::string termination;
  std::string message;
};

// What Kubernetes keeps of a container that ended is the end of its log.
TEST(Status, APodThatEndsAgainAndAgainSaysItsLastErrorWithoutTheFrameOfTheLog) {
  const std::string kWarning = "2026-11-30T01:05:00.100Z WARN worker: one thread threads=1\n";
  const std::string kError = "2026-11-30T01:05:00.394Z ERROR ";
  for (const EndRow& row : std::vector<EndRow>{
           {"exit code 4 (Error): " + kWarning + kError +
                "worker: a.gguf: not enough memory: give 94 MiB more reason=InsufficientMemory",
            "exit code 4 (Error): a.gguf: not enough memory: give 94 MiB more"},
           {"exit code 1: " + kError + "engine: no step error=\"a: b\"\n" + kWarning,
            "exit code 1: no step error=\"a: b\""},
           {"exit code 1: " + kError + "a: first\n" + kError + "b: then reason=Two words",
            "exit code 1: then reason=Two words"},
           {"exit code 139 (Error): " + kWarning, "exit code 139 (Error): " + kWarning},
           {"exit code 137 (OOMKilled)", "exit code 137 (OOMKilled)"}}) {
    Observed observed = OneModel();
    GroupObservation group;
    group.exists = true;
    group.pods.emplace_back();
    group.pods[0].name = "smol-0-0";
    group.pods[0].waiting_reason = "CrashLoopBackOff";
    group.pods[0].last_termination = row.termination;
    observed.groups = {group};
    EXPECT_EQ(ConditionOf(MakePlan(observed), "Ready").message(),
              "pod smol-0-0 ends again and again: " + row.message);
  }
}

TEST(Status, AMissingClaimIsNamed) {
  Observed observed = OneModel();
  observed.claim = ClaimState::kMissing;
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(ConditionOf(plan, "WeightsAvailable").reason(), "ClaimNotFound");
  EXPECT_THAT(plan.status.message(), HasSubstr("\"models\" in namespace ia; create it"));
}

// As with a RuntimeClass that is not there: nothing but the StatefulSet's events tells why.
TEST(Status, AGroupWhosePodsAreRefusedSaysWhereToReadWhy) {
  Observed observed = OneModel();
  GroupObservation group;
  group.exists = true;
  group.set_is_current = true;
  observed.groups = {group};
  const Plan refused = MakePlan(observed);
  EXPECT_EQ(refused.status.phase(), "Pending");
  EXPECT_THAT(refused.status.message(), HasSubstr("group smollm2-0 has no pods yet"));
  EXPECT_THAT(refused.status.message(),
              HasSubstr("kubectl -n ia describe statefulset smollm2-0 says by which"));
  observed.groups[0].pods = Serving(observed, 0).pods;
  observed.groups[0].pods[0].ready = false;
  EXPECT_EQ(MakePlan(observed).status.message(), "the workers are starting");
}

TEST(Status, APodWithoutNodeSaysWhatTheSchedulerSays) {
  Observed observed = OneModel();
  GroupObservation group;
  group.exists = true;
  PodObservation pod;
  pod.name = "smollm2-0-0";
  pod.unschedulable = "0/2 nodes are available: 2 Insufficient memory";
  group.pods.push_back(pod);
  observed.groups = {group};
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(ConditionOf(plan, "Fits").reason(), "Unschedulable");
  EXPECT_THAT(plan.status.message(), HasSubstr("Insufficient memory"));
}

TEST(Status, ANodesWarningIsShownAndToldOnce) {
  constexpr char kFull[] = "the node's disk is nearly full: less than 10 % of its space is free";
  Observed observed = OneModelOfThreePods();
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].members.members[1].node_warning = kFull;
  const auto told = [](const Plan& plan) {
    std::vector<std::string> messages;
    for (const PlannedEvent& event : plan.events) {
      if (event.reason == "NodeDiskNearlyFull") messages.push_back(event.message);
    }
    return messages;
  };
  Plan plan = MakePlan(observed);
  const auto& member = plan.status.groups(0).members(1);
  EXPECT_EQ(member.node_warning(), kFull);
  EXPECT_FALSE(plan.status.groups(0).members(0).has_node_warning());
  EXPECT_THAT(told(plan),
              ElementsAre("pod " + member.pod() + " on node " + member.node() + ": " + kFull));
  EXPECT_EQ(plan.status.phase(), "Ready") << "it serves";
  EXPECT_THAT(plan.deletions, IsEmpty());
  *observed.model.mutable_status() = plan.status;
  observed.groups[0].members.members[1].node_warning = "less than 1 %";
  plan = MakePlan(observed);
  EXPECT_THAT(told(plan), IsEmpty()) << "once";
  EXPECT_EQ(plan.status.groups(0).members(1).node_warning(), "less than 1 %");
  *observed.model.mutable_status() = plan.status;
  observed.groups[0].members.members[1].node_warning.clear();
  plan = MakePlan(observed);
  EXPECT_FALSE(plan.status.groups(0).members(1).has_node_warning());
  *observed.model.mutable_status() = plan.status;
  observed.groups[0].members.members[1].node_warning = kFull;
  EXPECT_EQ(told(MakePlan(observed)).size(), 1u) << "full again";
}

TEST(Status, OneGroupOfTwoInTroubleIsDegradedButReady) {
  Observed observed = OneModel();
  observed.model.mutable_spec()->set_replicas(2);
  observed.groups = {Serving(observed, 0), Failing("InsufficientMemory", "1024 MiB are missing")};
  observed.groups[1].index = 1;
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(ConditionOf(plan, "Ready").status(), "True");
  EXPECT_EQ(ConditionOf(plan, "Degraded").status(), "True");
  EXPECT_EQ(ConditionOf(plan, "Stalled").status(), "False");
  EXPECT_EQ(plan.status.phase(), "Degraded");
  EXPECT_EQ(plan.status.message(), "1024 MiB are missing");
}

TEST(Status, AMemberWhosePodGoesIsNamedBeforeItsGroupBreaks) {
  struct Row {
    bool deleting;
    std::string phase;
    std::string waits_for;  // as the members say
    std::string expected;
  };
  for (const Row& row : std::vector<Row>{
           {false, "Running", "", ""},
           {true, "Running", "", "rank 1 in pod smollm2-0-1 on node-1: its pod is being deleted"},
           {false, "Failed", "", "rank 1 in pod smollm2-0-1 on node-1: its pod has failed"},
           {true, "Running", "pod 2: not connected", "pod 2: not connected"}}) {
    Observed observed = OneModelOfThreePods();
    observed.groups = {Serving(observed, 0)};
    observed.groups[0].pods[1].deleting = row.deleting;
    observed.groups[0].pods[1].phase = row.phase;
    observed.groups[0].members.waits_for = row.waits_for;
    EXPECT_EQ(MakePlan(observed).status.groups(0).waiting_for(), row.expected);
  }
}

TEST(Status, TellsWhatTheLinksOfAGroupDo) {
  Observed observed = Settled(1);
  EXPECT_FALSE(MakePlan(observed).status.groups(0).has_fabric()) << "of one rank";
  observed.groups[0].members.fabric = {.all_reduce_microseconds = 40, .mib_per_second = 900};
  const auto on_cpu = MakePlan(observed).status.groups(0).fabric();
  EXPECT_EQ(on_cpu.all_reduce_microseconds(), 40);
  EXPECT_EQ(on_cpu.mib_per_second(), 900);
  EXPECT_FALSE(on_cpu.has_one_shot_kib());
  observed.groups[0].members.fabric.one_shot_kib = 256;
  EXPECT_EQ(MakePlan(observed).status.groups(0).fabric().one_shot_kib(), 256);
}

TEST(Status, TellsWhatTheStartOfTheLeaderWasMadeOfOnceItHasServed) {
  Observed observed = Settled(1);
  auto& start = observed.groups[0].members.start;
  start = {{"read", 800}, {"hash", 900}};
  EXPECT_EQ(MakePlan(observed).status.groups(0).start_size(), 0) << "it goes on";
  start.push_back({"warm_up", 40});
  start.push_back({"total", 1500});
  const auto status = MakePlan(observed).status.groups(0);
  ASSERT_EQ(status.start_size(), 4);
  EXPECT_EQ(status.start(0).part(), "read");
  EXPECT_EQ(status.start(0).milliseconds(), 800);
  EXPECT_EQ(status.start(3).part(), "total");
  EXPECT_EQ(status.start(3).milliseconds(), 1500);
}

TEST(Status, ADeletedPodIsAllOfItsGroupAndNobodyElseWaits) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].pods[0].deleting = true;
  EXPECT_EQ(MakePlan(observed).status.groups(0).waiting_for(), "");
}

std::vector<int> TensorSizes(const Observed& observed) {
  const auto& status = MakePlan(observed).status;
  return {status.tensor_sizes().begin(), status.tensor_sizes().end()};
}

TEST(Status, TellsWhatDividesTheModelForAsLongAsItsSourceIsTheSame) {
  Observed observed = OneModel();
  EXPECT_THAT(TensorSizes(observed), IsEmpty());
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].progress.config_hash = observed.groups[0].config_hash;
  observed.groups[0].progress.tensor_sizes = {1, 3, 9};
  EXPECT_THAT(TensorSizes(observed), ElementsAre(1, 3, 9));
  EXPECT_EQ(MakePlan(observed).status.tensor_sizes_source(), "pvc://models/a/smollm2.gguf");
  EXPECT_EQ(MakePlan(observed).status.tensor_sizes_text(), "1, 3, 9");

  *observed.model.mutable_status() = MakePlan(observed).status;
  observed.groups[0].progress.tensor_sizes = {};  // its stream is down
  EXPECT_THAT(TensorSizes(observed), ElementsAre(1, 3, 9));

  // What still runs is of the source before.
  observed.groups[0].progress.tensor_sizes = {1, 3, 9};
  observed.model.mutable_spec()->mutable_source()->set_uri("pvc://models/b/gemma.gguf");
  EXPECT_THAT(TensorSizes(observed), IsEmpty());
  EXPECT_EQ(MakePlan(observed).status.tensor_sizes_source(), "");
}

TEST(Status, TellsHowFarLoadingIs) {
  Observed observed = OneModel();
  GroupObservation group;
  group.exists = true;
  group.progress.phase = WorkerPhase::kLoading;
  group.progress.bytes_done = 50 << 20;
  group.progress.bytes_total = 100 << 20;
  observed.groups = {group};
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.phase(), "Loading");
  EXPECT_EQ(plan.status.message(), "loading the weights: 50 of 100 MiB");
  EXPECT_EQ(plan.status.download().mib_total(), 100);
  EXPECT_GT(plan.requeue_seconds, 0);
}

TEST(Status, APodThatIsReadyCountsWhileNoStreamTells) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  observed.groups[0].progress = {};
  EXPECT_EQ(ConditionOf(MakePlan(observed), "Ready").status(), "True");
  observed.groups[0].pods[0].deleting = true;
  EXPECT_EQ(ConditionOf(MakePlan(observed), "Ready").status(), "False");
}

TEST(Status, KeepsTheTransitionTimeAndTellsAnEventOnce) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  const Plan first = MakePlan(observed);
  ASSERT_EQ(first.events.size(), 1u);
  EXPECT_EQ(first.events[0].reason, "Serving");
  *observed.model.mutable_status() = first.status;
  observed.now = "2026-01-04T00:00:00Z";
  const Plan second = MakePlan(observed);
  EXPECT_THAT(second.events, IsEmpty());
  EXPECT_EQ(ConditionOf(second, "Ready").last_transition_time(), "2026-01-03T00:00:00Z");
}

TEST(Status, ShowsReplicasForScale) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.replicas(), 1);
  EXPECT_EQ(plan.status.selector(), "rempart.dev/model=smollm2");
  EXPECT_EQ(plan.status.observed_generation(), 3);
}

}  // namespace
}  // namespace rempart::op
