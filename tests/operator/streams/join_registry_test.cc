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
    identity.set_pod_uid("uid-of-stream-" + std::to_string(stream));
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

TEST_F(JoinRegistryTest, ReportsTheLeadersLinksAndWhatItsStartWasMadeOf) {
  const int32_t epoch = Serve();
  for (const int64_t stream : {1, 2}) {
    Progress progress;
    progress.set_phase(Progress::READY);
    progress.set_epoch(epoch);
    progress.mutable_fabric()->set_all_reduce_microseconds(40);
    progress.mutable_fabric()->set_one_shot_kib(static_cast<int32_t>(128 * stream));
    progress.mutable_rank_memory()->set_weights_mib(static_cast<int32_t>(1000 * stream));
    progress.mutable_rank_memory()->set_kv_cache_mib(7);
    progress.add_start()->set_part("read");
    progress.mutable_start(0)->set_milliseconds(static_cast<int32_t>(700 + stream));
    registry.Progressed(stream, progress);
    registry.Progressed(stream, progress);
  }
  const GroupReport report = registry.Report("ia/m-0");
  EXPECT_EQ(report.fabric.all_reduce_microseconds, 40);
  EXPECT_EQ(report.fabric.one_shot_kib, 128);
  EXPECT_EQ(report.progress.rank_memory.weights_mib, 1000);
  EXPECT_EQ(report.progress.rank_memory.kv_cache_mib, 7);
  EXPECT_EQ(report.start, (StartReport{{"read", 701}}));
}

group::v1::GpuReport TwoGpus() {
  group::v1::GpuReport report;
  for (const char* uuid : {"GPU-a", "GPU-b"}) {
    report.add_gpus()->set_name("NVIDIA H200");
    report.mutable_gpus(report.gpus_size() - 1)->set_uuid(uuid);
    report.mutable_gpus(report.gpus_size() - 1)->set_ecc_uncorrected(-1);
  }
  return report;
}

void Break(int32_t gpu, int32_t xid, group::v1::GpuReport& report) {
  report.mutable_fault()->set_gpu(gpu);
  report.mutable_fault()->set_xid(xid);
  report.mutable_fault()->set_meaning("the GPU has fallen off the bus");
  report.mutable_fault()->set_at_unix_ms(1'800'000'000'500);
  report.mutable_fault()->set_broken(true);
}

TEST_F(JoinRegistryTest, WhatAMemberSaysOfItsGpusIsNewsOnce) {
  Join(1, 0, 1);
  const auto gpus = [&] { return registry.Report("ia/m-0").members.at(0).gpus; };
  EXPECT_TRUE(gpus().gpus.empty());
  changes.clear();
  group::v1::GpuReport report = TwoGpus();
  registry.ToldGpus(1, report);
  registry.ToldGpus(1, report);
  EXPECT_EQ(changes.size(), 1u);
  EXPECT_EQ(gpus().gpus, (std::vector<std::string>{"NVIDIA H200 GPU-a", "NVIDIA H200 GPU-b"}));
  EXPECT_EQ(gpus().concern, "");
  EXPECT_FALSE(gpus().fault.has_value());
  report.mutable_gpus(1)->set_ecc_uncorrected(2);
  report.mutable_gpus(1)->set_remap_pending(true);
  report.set_problem("XIDs are not heard");
  Break(1, 79, report);
  registry.ToldGpus(1, report);
  EXPECT_EQ(changes.size(), 2u);
  EXPECT_EQ(gpus().concern,
            "XIDs are not heard; NVIDIA H200 GPU-b: 2 memory errors that ECC could not correct, it "
            "wants a reset when nothing runs on it");
  ASSERT_TRUE(gpus().fault.has_value());
  EXPECT_EQ(gpus().fault->gpu, "NVIDIA H200 GPU-b");
  EXPECT_EQ(gpus().fault->xid, 79);
  EXPECT_EQ(gpus().fault->at, absl::FromUnixMillis(1'800'000'000'500));
  EXPECT_TRUE(gpus().fault->is_broken);
  registry.ToldGpus(77, TwoGpus());  // of no stream
  EXPECT_EQ(changes.size(), 2u);
}

TEST_F(JoinRegistryTest, AFaultIsKeptUntilAnotherProcessSpeaks) {
  const auto has_fault = [&] {
    return registry.Report("ia/m-0").members.at(0).gpus.fault.has_value();
  };
  group::v1::GpuReport broken = TwoGpus();
  Break(0, 48, broken);
  // A process that failed is quoted after its end, until the next has something to say.
  Join(1, 0, 1);
  registry.ToldGpus(1, broken);
  Say(1, Progress::FAILED);
  registry.Left(1);
  EXPECT_TRUE(has_fault());
  Join(2, 0, 1);
  EXPECT_TRUE(has_fault());
  registry.ToldGpus(1, TwoGpus());
  EXPECT_TRUE(has_fault()) << "of an older stream";
  registry.ToldGpus(2, TwoGpus());
  EXPECT_FALSE(has_fault());
  // One whose stream broke says it again; one that just ended is forgotten with its next process.
  Say(2, Progress::READY, 7);
  registry.ToldGpus(2, broken);
  registry.Left(2);
  Join(3, 0, 1, 7);
  EXPECT_TRUE(has_fault());
  registry.Left(3);
  Join(4, 0, 1);
  EXPECT_FALSE(has_fault());
}

TEST(GpusFromWire, TakesNothingForGranted) {
  group::v1::GpuReport report = TwoGpus();
  Break(9, 79, report);
  EXPECT_EQ(GpusFromWire(report).fault->gpu, "");
  Break(-1, 79, report);
  report.mutable_fault()->set_meaning(std::string(5000, 'x'));
  EXPECT_EQ(GpusFromWire(report).fault->gpu, "");
  EXPECT_EQ(GpusFromWire(report).fault->meaning.size(), 512u);
  for (int i = 0; i < 100; ++i) report.add_gpus()->set_remap_failed(true);
  EXPECT_EQ(GpusFromWire(report).gpus.size(), 16u);
  EXPECT_EQ(GpusFromWire(report).concern.size(), 512u);
}

TEST_F(JoinRegistryTest, AWarningOfANodeIsNewsOnceAndEndsWithItsProcess) {
  const int32_t epoch = Serve();
  changes.clear();
  Progress progress;
  progress.set_phase(Progress::READY);
  progress.set_epoch(epoch);
  progress.set_ended_blamed_rank(-1);
  progress.set_node_warning("the node's disk is nearly full");
  registry.Progressed(2, progress);
  EXPECT_EQ(changes, std::vector<std::string>{"ia/m-0"});
  registry.Progressed(2, progress);
  EXPECT_EQ(changes.size(), 1u) << "nothing new";
  GroupReport report = registry.Report("ia/m-0");
  EXPECT_EQ(report.members[1].node_warning, "the node's disk is nearly full");
  EXPECT_EQ(report.members[0].node_warning, "");
  progress.set_node_warning(std::string(1000, 'x'));
  registry.Progressed(2, progress);
  EXPECT_EQ(registry.Report("ia/m-0").members[1].node_warning.size(), 512u);
  Join(3, 1, 2);
  EXPECT_EQ(registry.Report("ia/m-0").members[1].node_warning, "") << "another process";
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
  EXPECT_EQ(report.last_ending.blamed_pod_uids, std::vector<std::string>{"uid-of-stream-2"});
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
