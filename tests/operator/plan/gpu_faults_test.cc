// SPDX-License-Identifier: Apache-2.0
// What a plan makes of what members say of their GPUs.
#include "operator/plan/gpu_faults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kGpu[] = "NVIDIA H200 GPU-a";

MemberObservation& MemberOf(Observed& observed, int32_t pod = 0) {
  return observed.groups[0].members.members[static_cast<size_t>(pod)];
}

void Fault(int32_t xid, bool broken, const std::string& time, MemberObservation& member) {
  member.gpu_fault = GpuFaultObservation{
      kGpu, xid, "the GPU has fallen off the bus", "reboot the node", time, broken};
}

// One pod with a GPU that serves.
Observed OnOneGpu() {
  Observed observed = OneModel();
  observed.nodes = Nodes(2);
  observed.groups = {Serving(observed, 0)};
  MemberOf(observed).gpus = {kGpu};
  return observed;
}

Observed OfThree() {
  Observed observed = OneModelOfThreePods();
  observed.groups = {Serving(observed, 0)};
  for (MemberObservation& member : observed.groups[0].members.members) member.gpus = {kGpu};
  return observed;
}

// What the next look sees, a second later, of the status that this plan has written.
void Next(const Plan& plan, Observed& observed) {
  *observed.model.mutable_status() = plan.status;
  Later(1, observed);
}

std::vector<std::string> Told(const Plan& plan, const std::string& reason) {
  std::vector<std::string> messages;
  for (const PlannedEvent& event : plan.events) {
    if (event.reason == reason) messages.push_back(absl::StrCat(event.type, ": ", event.message));
  }
  return messages;
}

TEST(GpuFaults, TheStatusShowsTheGpusAndHowTheyAre) {
  Observed observed = OnOneGpu();
  const Plan well = MakePlan(observed);
  const auto& member = well.status.groups(0).members(0);
  EXPECT_THAT(member.gpus(), ElementsAre(kGpu));
  EXPECT_EQ(member.health(), "OK");
  EXPECT_FALSE(member.has_gpu_fault());
  MemberOf(observed).gpu_concern = "NVIDIA H200 GPU-a: 2 memory errors that ECC could not correct";
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.groups(0).members(0).health(), MemberOf(observed).gpu_concern);
  EXPECT_THAT(plan.events,
              Not(testing::Contains(testing::Field(&PlannedEvent::reason, "GpuFault"))));
  MemberOf(observed) = {};
  EXPECT_FALSE(MakePlan(observed).status.groups(0).members(0).has_health()) << "on a CPU";
}

TEST(GpuFaults, AnApplicationFaultIsOnlyReported) {
  Observed observed = OnOneGpu();
  Fault(31, false, "2026-01-02T23:59:59.000Z", MemberOf(observed));
  Plan plan = MakePlan(observed);
  EXPECT_THAT(
      Told(plan, "GpuFault"),
      ElementsAre("Warning: pod smollm2-0-0 on node node-0: NVIDIA H200 GPU-a: XID 31, the "
                  "GPU has fallen off the bus. Its process goes on. To do: reboot the node"));
  EXPECT_THAT(plan.deletions, IsEmpty());
  EXPECT_EQ(plan.status.suspect_nodes_size(), 0);
  EXPECT_EQ(plan.status.groups(0).failures(), 0);
  const auto& member = plan.status.groups(0).members(0);
  EXPECT_EQ(member.health(), "NVIDIA H200 GPU-a: XID 31, the GPU has fallen off the bus");
  EXPECT_EQ(member.gpu_fault().xid(), 31);
  EXPECT_EQ(member.gpu_fault().gpu(), kGpu);
  EXPECT_EQ(member.gpu_fault().time(), "2026-01-02T23:59:59.000Z");
  EXPECT_FALSE(member.gpu_fault().broken());
  EXPECT_EQ(plan.status.phase(), "Ready");
  Next(plan, observed);
  plan = MakePlan(observed);
  EXPECT_THAT(Told(plan, "GpuFault"), IsEmpty()) << "once";
  EXPECT_EQ(plan.status.groups(0).members(0).gpu_fault().xid(), 31);
  Next(plan, observed);
  Fault(31, false, "2026-01-03T00:05:00.000Z", MemberOf(observed));
  EXPECT_EQ(Told(MakePlan(observed), "GpuFault").size(), 1u) << "another one";
}

TEST(GpuFaults, APodWithABrokenGpuIsReplacedAndItsNodeSuspected) {
  Observed observed = OnOneGpu();
  Fault(79, true, "2026-01-02T23:59:59.000Z", MemberOf(observed));
  GroupObservation& group = observed.groups[0];
  group.progress.phase = MemberOf(observed).phase = WorkerPhase::kFailed;
  group.progress.reason = "GpuBroken";
  group.progress.message = "GPU 0 (NVIDIA H200, GPU-a): XID 79: the GPU has fallen off the bus";
  Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.deletions.size(), 1u);
  EXPECT_EQ(plan.deletions[0].uid, "uid-0-0");
  EXPECT_EQ(plan.deletions[0].grace_seconds, 1);
  EXPECT_EQ(plan.deletions[0].why,
            "its GPU is broken: NVIDIA H200 GPU-a: XID 79, the GPU has fallen off the bus");
  EXPECT_EQ(Told(plan, "GpuFault").size(), 1u);
  EXPECT_THAT(Told(plan, "GpuFault")[0], HasSubstr("Its process ends, and the pod is replaced"));
  ASSERT_EQ(plan.status.suspect_nodes_size(), 1);
  EXPECT_EQ(plan.status.suspect_nodes(0).name(), "node-0");
  EXPECT_EQ(plan.status.suspect_nodes(0).count(), 1);
  EXPECT_FALSE(plan.status.suspect_nodes(0).excluded());
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
  EXPECT_EQ(ConditionOf(plan, "Ready").status(), "False");
  EXPECT_THAT(ConditionOf(plan, "Ready").message(), HasSubstr("XID 79"));

  // The same process, still there a second later: nothing counts again.
  Next(plan, observed);
  plan = MakePlan(observed);
  EXPECT_EQ(plan.deletions.size(), 1u);
  EXPECT_THAT(Told(plan, "GpuFault"), IsEmpty());
  EXPECT_EQ(plan.status.suspect_nodes(0).count(), 1);
  EXPECT_EQ(plan.status.groups(0).failures(), 1);

  // The kubelet has started it again, and the new process has said nothing yet, or that all is
  // well.
  Next(plan, observed);
  group.progress = {};
  MemberOf(observed).phase = WorkerPhase::kLoading;
  MemberOf(observed).gpu_fault.reset();
  plan = MakePlan(observed);
  EXPECT_EQ(plan.deletions.size(), 1u) << "it is the same pod, with the same GPU";

  // The pod that follows. The last words of the process before it are just as old as it is.
  Next(plan, observed);
  group.pods[0].uid = "uid-next";
  group.pods[0].age_seconds = 0;
  MemberOf(observed).silent_ms = 900;
  Fault(79, true, "2026-01-02T23:59:59.000Z", MemberOf(observed));
  for (int look = 0; look < 3; ++look) {
    plan = MakePlan(observed);
    EXPECT_THAT(plan.deletions, IsEmpty()) << "another pod has another GPU";
    EXPECT_THAT(Told(plan, "GpuFault"), IsEmpty());
    EXPECT_EQ(plan.status.suspect_nodes(0).count(), 1);
    Next(plan, observed);
    MemberOf(observed).silent_ms += 1000;  // by turns older and no older than the pod
    group.pods[0].age_seconds += look % 2;
  }
  MemberOf(observed).silent_ms = 0;
  MemberOf(observed).gpu_fault.reset();
  plan = MakePlan(observed);
  EXPECT_FALSE(plan.status.groups(0).members(0).has_gpu_fault()) << "of the pod before";
}

TEST(GpuFaults, ANodeWhereTwoBreakWithinAnHourIsExcluded) {
  Observed observed = OnOneGpu();
  Fault(79, true, "2026-01-02T23:59:59.000Z", MemberOf(observed));
  Plan plan = MakePlan(observed);
  EXPECT_FALSE(plan.status.suspect_nodes(0).excluded());
  Next(plan, observed);
  Later(600, observed);
  observed.groups[0].pods[0].uid = "uid-next";
  Fault(48, true, "2026-01-03T00:10:00.000Z", MemberOf(observed));
  plan = MakePlan(observed);
  EXPECT_EQ(Told(plan, "GpuFault").size(), 1u);
  EXPECT_EQ(plan.status.suspect_nodes(0).count(), 2);
  EXPECT_TRUE(plan.status.suspect_nodes(0).excluded());
  EXPECT_EQ(Told(plan, "NodeExcluded").size(), 1u);
  EXPECT_THAT(plan.status.suspect_nodes(0).reason(), HasSubstr("XID 48"));
}

void End(int32_t epoch, const std::string& pod, Observed& observed) {
  auto& members = observed.groups[0].members;
  members.running = false;
  members.ending = {epoch, absl::StrCat("lost ", pod), {pod}, 900, 0};
}

TEST(GpuFaults, OneBrokenGpuOfAGroupCountsOnce) {
  Observed observed = OfThree();
  Fault(74, true, "2026-01-02T23:59:59.000Z", MemberOf(observed, 2));
  Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.deletions.size(), 1u);
  EXPECT_EQ(plan.deletions[0].pod, "smollm2-0-2");
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
  // That its epoch is over is seen later, and follows from it.
  Next(plan, observed);
  End(7, "smollm2-0-2", observed);
  plan = MakePlan(observed);
  EXPECT_EQ(Told(plan, "MemberLost").size(), 1u);
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
  ASSERT_EQ(plan.status.suspect_nodes_size(), 1);
  EXPECT_EQ(plan.status.suspect_nodes(0).name(), "node-2");
  EXPECT_EQ(plan.status.suspect_nodes(0).count(), 1);
}

TEST(GpuFaults, ACauseThatIsNamedAfterTheEndCountsOnceToo) {
  Observed observed = OfThree();
  End(7, "smollm2-0-2", observed);
  Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
  Next(plan, observed);
  Fault(74, true, "2026-01-02T23:59:59.000Z", MemberOf(observed, 2));
  plan = MakePlan(observed);
  EXPECT_EQ(Told(plan, "GpuFault").size(), 1u);
  EXPECT_EQ(plan.deletions.size(), 1u);
  EXPECT_EQ(plan.status.groups(0).failures(), 1);
  EXPECT_EQ(plan.status.suspect_nodes(0).count(), 1);
}

TEST(GpuFaults, PodsAreReplacedWithPausesUntilTheBudgetIsSpent) {
  Observed observed = OnOneGpu();
  Plan plan = MakePlan(observed);
  for (int i = 0; i < kFailureBudget + 1; ++i) {
    Next(plan, observed);
    Later(100, observed);
    Fault(95, true, absl::StrCat("2026-01-03T01:00:0", i, ".000Z"), MemberOf(observed));
    plan = MakePlan(observed);
    EXPECT_EQ(plan.status.groups(0).failures(), i + 1);
    EXPECT_EQ(plan.deletions.size(), i == 0 ? 1u : 0u) << "the first at once";
    Next(plan, observed);
    Later(60, observed);
    plan = MakePlan(observed);
    EXPECT_EQ(plan.deletions.size(), i < kFailureBudget ? 1u : 0u) << i;
  }
}

TEST(GpuFaults, AWordOfTheDriverWithoutAnXidIsAFaultToo) {
  Observed observed = OnOneGpu();
  Fault(0, true, "2026-01-02T23:59:59.000Z", MemberOf(observed));
  MemberOf(observed).gpu_fault->meaning = "the driver says that it must be reset";
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.status.groups(0).members(0).health(),
            "NVIDIA H200 GPU-a: the driver says that it must be reset");
  EXPECT_EQ(plan.deletions.size(), 1u);
}

}  // namespace
}  // namespace rempart::op
