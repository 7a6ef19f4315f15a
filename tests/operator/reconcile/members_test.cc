// SPDX-License-Identifier: Apache-2.0
// From the words of members to what a plan sees of them.
#include "operator/reconcile/members.h"

#include <gtest/gtest.h>

#include "absl/time/clock.h"

namespace rempart::op {
namespace {

TEST(ObserveMembers, WhatIsSaidOfGpusReachesThePlan) {
  for (const int32_t pod_count : {1, 2}) {
    GroupReport report;
    report.pod_count = pod_count;
    MemberReport& member = report.members.emplace_back();
    member.pod_name = "m-0-0";
    member.gpus.gpus = {"NVIDIA H200 GPU-a"};
    member.gpus.concern = "XIDs are not heard";
    member.gpus.fault = GpuFaultReport{.gpu = "NVIDIA H200 GPU-a",
                                       .xid = 79,
                                       .meaning = "m",
                                       .advice = "a",
                                       .at = absl::FromUnixMillis(1'800'000'000'500),
                                       .is_broken = true};
    report.members.emplace_back().pod_name = "m-0-1";
    const MembersObservation seen = ObserveMembers(report, absl::Now());
    ASSERT_EQ(seen.members.size(), 2u);
    EXPECT_EQ(seen.members[0].gpus, std::vector<std::string>{"NVIDIA H200 GPU-a"});
    EXPECT_EQ(seen.members[0].gpu_concern, "XIDs are not heard");
    ASSERT_TRUE(seen.members[0].gpu_fault.has_value());
    const GpuFaultObservation& fault = *seen.members[0].gpu_fault;
    EXPECT_EQ(fault.gpu, "NVIDIA H200 GPU-a");
    EXPECT_EQ(fault.xid, 79);
    EXPECT_EQ(fault.meaning, "m");
    EXPECT_EQ(fault.advice, "a");
    EXPECT_EQ(fault.time, "2027-01-15T08:00:00.500Z");
    EXPECT_TRUE(fault.broken);
    EXPECT_TRUE(seen.members[1].gpus.empty());
    EXPECT_FALSE(seen.members[1].gpu_fault.has_value());
  }
}

TEST(ObserveMembers, WhatIsSaidOfLinksAndOfTheStartReachesThePlan) {
  for (const int32_t pod_count : {1, 2}) {
    GroupReport report;
    report.pod_count = pod_count;
    report.fabric = {40, 900, 7, 128};
    report.start = {{"read", 700}, {"total", 900}};
    const MembersObservation seen = ObserveMembers(report, absl::Now());
    EXPECT_EQ(seen.fabric.mib_per_second, 900);
    EXPECT_EQ(seen.fabric.microseconds_per_token, 7);
    EXPECT_EQ(seen.fabric.one_shot_kib, 128);
    ASSERT_EQ(seen.start.size(), 2u);
    EXPECT_EQ(seen.start[1].part, "total");
    EXPECT_EQ(seen.start[1].milliseconds, 900);
  }
}

TEST(ObserveMembers, WhoIsToBlameIsToldWithItsPod) {
  GroupReport report;
  report.pod_count = 2;
  report.last_ending.blamed_pods = {"m-0-1"};
  report.last_ending.blamed_pod_uids = {"old"};
  EXPECT_EQ(ObserveMembers(report, absl::Now()).ending.blamed_pod_uids,
            std::vector<std::string>{"old"});
}

TEST(CheckHasItsPlace, APodThatWasReplacedIsRefusedAndANewOneIsNot) {
  Store<k8s::v1::Pod> pods;
  k8s::v1::Pod pod;
  pod.mutable_metadata()->set_namespace_("ia");
  pod.mutable_metadata()->set_name("m-0-1");
  pod.mutable_metadata()->set_uid("new");
  pods.Put(pod);
  group::v1::Identity worker;
  worker.set_group_name("ia/m-0");
  worker.set_pod_name("m-0-1");
  const auto check = [&](const std::string& uid, int32_t last_epoch) {
    worker.set_pod_uid(uid);
    worker.set_last_epoch(last_epoch);
    return CheckHasItsPlace(worker, pods);
  };
  EXPECT_TRUE(check("new", 7).ok());
  EXPECT_TRUE(check("", 7).ok()) << "a worker that does not say";
  EXPECT_EQ(check("old", 7).message(),
            "pod ia/m-0-1 with uid old has been replaced by one with uid new");
  EXPECT_FALSE(check("old", 0).ok()) << "its kubelet has started it again, cut off as it was";
  pods.Remove(KeyOf(pod));
  EXPECT_EQ(check("old", 7).message(), "pod ia/m-0-1 with uid old is no more there");
  EXPECT_TRUE(check("newer", 0).ok()) << "the word of it is on its way";
}

}  // namespace
}  // namespace rempart::op
