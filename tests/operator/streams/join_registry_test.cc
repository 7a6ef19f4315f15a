// SPDX-License-Identifier: Apache-2.0
// What members say on Join and what they are told, stream by stream.
#include "operator/streams/join_registry.h"

#include <gtest/gtest.h>

namespace rempart::op {
namespace {

using group::v1::Progress;
using group::v1::ToMember;

class JoinRegistryTest : public testing::Test {
 protected:
  void Join(int64_t stream, int32_t pod, int32_t pod_count, int32_t last_epoch = 0) {
    group::v1::Identity identity;
    identity.set_group_name("ia/m-0");
    identity.set_pod_index(pod);
    identity.set_pod_count(pod_count);
    identity.set_pod_name("m-0-" + std::to_string(pod));
    identity.set_address("10.0.0." + std::to_string(pod) + ":7070");
    identity.set_data_address("10.0.0." + std::to_string(pod) + ":7071");
    identity.set_last_epoch(last_epoch);
    registry.Joined(stream, identity,
                    [this, stream](ToMember order) { told[stream].push_back(std::move(order)); });
  }
  void Say(int64_t stream, Progress::Phase phase, int32_t epoch = 0, int32_t ended = 0) {
    Progress progress;
    progress.set_phase(phase);
    progress.set_epoch(epoch);
    progress.set_ended_epoch(ended);
    progress.set_ended_blamed_rank(-1);
    progress.set_bytes_total(50);
    progress.set_weight_bytes_read(50);
    registry.Progressed(stream, progress);
  }
  // Two pods on streams 1 and 2 until they serve.
  int32_t Serve() {
    Join(1, 0, 2);
    Join(2, 1, 2);
    Say(1, Progress::STARTING);
    Say(2, Progress::STARTING);
    const int32_t epoch = told[1].back().epoch().epoch();
    Say(1, Progress::LOADED, epoch);
    Say(2, Progress::LOADED, epoch);
    Say(1, Progress::READY, epoch);
    Say(2, Progress::READY, epoch);
    return epoch;
  }

  ManualClock clock;
  std::vector<std::string> changes;
  JoinRegistry registry{&clock, [this](const std::string& group) { changes.push_back(group); }};
  std::map<int64_t, std::vector<ToMember>> told;
};

TEST_F(JoinRegistryTest, AGroupOfOnePodIsCompleteAtOnce) {
  Join(1, 0, 1);
  ASSERT_EQ(told[1].size(), 2u);
  const int32_t epoch = told[1][0].epoch().epoch();
  EXPECT_GT(epoch, 1'000'000'000) << "time makes it greater than any before";
  EXPECT_EQ(told[1][1].go().epoch(), epoch);
  Say(1, Progress::READY, epoch);
  EXPECT_EQ(registry.Report("ia/m-0").progress.phase, WorkerPhase::kReady);
  registry.Left(1);
  EXPECT_EQ(registry.Report("ia/m-0").progress.phase, WorkerPhase::kUnknown);
  Join(2, 0, 1, epoch);
  EXPECT_EQ(told[2][0].epoch().epoch(), epoch) << "a survivor keeps its epoch";
  Join(3, 0, 1);
  EXPECT_EQ(told[3][0].epoch().epoch(), epoch + 1);
}

TEST_F(JoinRegistryTest, MembersLearnOfEachOtherAndOfOneSecret) {
  Join(1, 0, 2);
  Say(1, Progress::STARTING);
  EXPECT_TRUE(told[1].empty());
  EXPECT_EQ(registry.Report("ia/m-0").progress.message, "waits for pod 1 (1 of 2 pods are there)");
  Join(2, 1, 2);
  Say(2, Progress::STARTING);
  ASSERT_EQ(told[1].size(), 1u);
  ASSERT_EQ(told[2].size(), 1u);
  const group::v1::Epoch& epoch = told[1][0].epoch();
  EXPECT_EQ(epoch.SerializeAsString(), told[2][0].epoch().SerializeAsString());
  EXPECT_EQ(epoch.addresses(0), "10.0.0.0:7070");
  EXPECT_EQ(epoch.data_addresses(1), "10.0.0.1:7071");
  EXPECT_EQ(epoch.key().size(), 32u);
  Say(1, Progress::LOADED, epoch.epoch());
  EXPECT_EQ(registry.Report("ia/m-0").progress.phase, WorkerPhase::kLoading);
  Say(2, Progress::LOADED, epoch.epoch());
  EXPECT_EQ(told[1].back().go().epoch(), epoch.epoch());
  EXPECT_EQ(told[2].back().go().epoch(), epoch.epoch());
  EXPECT_EQ(registry.Report("ia/m-0").progress.bytes_total, 100);
}

TEST_F(JoinRegistryTest, AFrozenLeaderIsNotReadyOnItsOldWord) {
  const int32_t epoch = Serve();
  EXPECT_EQ(registry.Report("ia/m-0").progress.phase, WorkerPhase::kReady);
  Progress waits;
  waits.set_phase(Progress::READY);
  waits.set_epoch(epoch);
  waits.set_ended_blamed_rank(-1);
  group::v1::RankProgress& leader = *waits.add_ranks();
  leader.set_rank(0);
  for (int ms = 100; ms <= 3000; ms += 100) {
    registry.Tick(absl::Milliseconds(100));
    leader.set_heard_age_ms(ms);
    registry.Progressed(2, waits);
  }
  const GroupReport report = registry.Report("ia/m-0");
  EXPECT_EQ(report.last_ending.blamed_pods, std::vector<std::string>{"m-0-0"});
  EXPECT_EQ(report.progress.phase, WorkerPhase::kStarting);
  EXPECT_NE(report.progress.message, "");
}

TEST_F(JoinRegistryTest, ALostMemberIsNamedAndTheGroupFormsAgain) {
  const int32_t epoch = Serve();
  registry.Left(2);
  EXPECT_FALSE(told[1].back().has_abort()) << "a broken stream ends nothing";
  Join(3, 1, 2);
  ASSERT_TRUE(told[1].back().has_abort());
  EXPECT_EQ(told[1].back().abort().epoch(), epoch);
  EXPECT_EQ(told[1].back().abort().blamed_rank(), 1);
  GroupReport report = registry.Report("ia/m-0");
  EXPECT_EQ(report.last_ending.blamed_pods, std::vector<std::string>{"m-0-1"});
  EXPECT_TRUE(report.members[1].blamed);
  Say(1, Progress::STARTING, 0, epoch);
  Say(3, Progress::STARTING);
  const int32_t next = told[3].back().epoch().epoch();
  EXPECT_GT(next, epoch);
  EXPECT_NE(told[1].back().epoch().key(), told[1].front().epoch().key());
  Say(1, Progress::LOADED, next, epoch);
  Say(3, Progress::LOADED, next);
  registry.Tick(absl::Milliseconds(100));
  Say(1, Progress::READY, next, epoch);
  report = registry.Report("ia/m-0");
  EXPECT_EQ(report.recoveries, 1);
  EXPECT_EQ(report.epochs_ended, 1);
  EXPECT_EQ(report.last_recovery, absl::Milliseconds(100));
  EXPECT_EQ(report.recovery_times.count, 1);
  EXPECT_EQ(report.aborts_by_rank, (std::map<int32_t, int64_t>{{1, 1}}));
  EXPECT_EQ(report.time_in_phase[WorkerPhase::kStarting], absl::ZeroDuration());
  EXPECT_EQ(report.time_in_phase[WorkerPhase::kLoaded], absl::Milliseconds(100));
  EXPECT_FALSE(report.members[1].blamed);
}

TEST_F(JoinRegistryTest, ALeaderIsToldToDrainAndItsEndIsNews) {
  const int32_t epoch = Serve();
  registry.Drain("ia/m-0", absl::Seconds(300));
  EXPECT_EQ(told[1].back().drain().deadline_seconds(), 300);
  EXPECT_FALSE(told[2].back().has_drain()) << "followers end with the leader's epoch";
  Progress draining;
  draining.set_phase(Progress::DRAINING);
  draining.set_epoch(epoch);
  draining.set_requests(2);
  registry.Progressed(1, draining);
  EXPECT_EQ(registry.Report("ia/m-0").progress.requests, 2);
  changes.clear();
  registry.Progressed(1, draining);
  EXPECT_TRUE(changes.empty());
  draining.set_requests(0);
  registry.Progressed(1, draining);
  EXPECT_EQ(changes.size(), 1u);
  // It says that it drains: there is nothing to tell but that it may go on.
  told[1].clear();
  registry.Drain("ia/m-0", absl::Seconds(300));
  EXPECT_TRUE(told[1].empty());
  registry.Resume("ia/m-0");
  EXPECT_TRUE(told[1].back().has_resume());
  Say(1, Progress::READY, epoch);
  told[1].clear();
  registry.Resume("ia/m-0");
  EXPECT_TRUE(told[1].empty()) << "it does go on";
  registry.Left(1);
  registry.Drain("ia/m-0", absl::Seconds(300));  // nobody to tell
  registry.Resume("ia/m-0");
  registry.Resume("ia/unknown-0");
}

TEST_F(JoinRegistryTest, AnOperatorThatSleptHasNotWaitedForAnybody) {
  Serve();
  registry.Tick(absl::Minutes(10));
  clock.Advance(absl::Hours(5));
  registry.Tick(absl::Milliseconds(100));
  EXPECT_FALSE(told[1].back().has_abort());
  EXPECT_EQ(registry.Report("ia/m-0").epochs_ended, 0);
}

TEST_F(JoinRegistryTest, AFailureIsQuotedWhileItsProcessStartsAgain) {
  Join(1, 0, 1);
  Progress failed;
  failed.set_phase(Progress::FAILED);
  failed.set_reason("InvalidModelFile");
  registry.Progressed(1, failed);
  registry.Left(1);
  Join(2, 0, 1);
  Say(2, Progress::STARTING);
  EXPECT_EQ(registry.Report("ia/m-0").progress.reason, "InvalidModelFile");
  clock.Advance(absl::Seconds(11));
  Say(2, Progress::LOADING);
  EXPECT_EQ(registry.Report("ia/m-0").progress.phase, WorkerPhase::kLoading);
}

}  // namespace
}  // namespace rempart::op
