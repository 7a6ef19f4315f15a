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

}  // namespace
}  // namespace rempart::op
