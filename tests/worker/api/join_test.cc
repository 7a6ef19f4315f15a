// SPDX-License-Identifier: Apache-2.0
// The Join client against an operator's end that records what it hears.
#include "worker/api/join_client.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/api/group_wire.h"

namespace rempart::worker {
namespace {

using group::v1::FromMember;
using group::v1::Progress;
using group::v1::ToMember;

class Recorder : public group::v1::GroupControl::Service {
 public:
  grpc::Status Join(grpc::ServerContext*,
                    grpc::ServerReaderWriter<ToMember, FromMember>* stream) override {
    ToMember epoch;
    epoch.mutable_epoch()->set_epoch(4);
    stream->Write(epoch);
    FromMember message;
    while (stream->Read(&message)) {
      MutexLock lock(&mu);
      if (message.has_identity()) identities.push_back(message.identity());
      if (message.has_progress()) last = message.progress();
      if (message.has_gpus()) gpus.push_back(message.gpus());
      if (message.has_progress() && message.progress().phase() == Progress::FAILED) {
        gpus_before_the_end = gpus.size();
      }
      if (break_next) {
        break_next = false;
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
      }
      if (drain_next) {
        drain_next = false;
        ToMember drain;
        drain.mutable_drain()->set_deadline_seconds(7);
        stream->Write(drain);
      }
    }
    return grpc::Status::OK;
  }

  template <typename Condition>
  bool Wait(const Condition& condition) {
    MutexLock lock(&mu);
    return mu.AwaitWithTimeout(absl::Condition(&condition), absl::Seconds(20));
  }

  Mutex mu;
  std::vector<group::v1::Identity> identities;
  Progress last;
  std::vector<group::v1::GpuReport> gpus;
  size_t gpus_before_the_end = 0;
  bool break_next = false;
  bool drain_next = false;
};

// Rounded up.
std::vector<int32_t> MibOf(const group::v1::RankMemory& memory) {
  return {memory.weights_mib(), memory.workspace_mib(), memory.kv_cache_mib(),
          memory.reserve_mib()};
}

TEST(JoinClient, TellsItsProgressSurvivesABreakAndHearsDrain) {
  Recorder recorder;
  const std::string address = absl::StrCat("unix:/tmp/rempart_join_", getpid(), ".sock");
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&recorder);
  auto server = builder.BuildAndStart();

  WorkerStatus status;
  status.SetPhase(Phase::kLoading);
  status.SetLoaded(10, 100);
  status.AddStartPart("read", absl::Milliseconds(800));
  OneShotFacts one_shot;
  one_shot.max_bytes = 256 << 10;
  status.SetOneShot(one_shot);
  status.SetRankMemory({(int64_t{7} << 20) + 1, int64_t{2} << 20, int64_t{3} << 20, 1});
  Mutex mu;
  absl::Duration drain = absl::ZeroDuration();
  auto client = JoinClient::Start(
      address, {}, {.group_name = "ia/m-0", .pod_name = "m-0-0", .facts = {{"kernels", "avx2"}}},
      {.on_drain =
           [&](absl::Duration deadline) {
             MutexLock lock(&mu);
             drain = deadline;
           },
       .ranks = {},
       .node_warning = [] { return "the node's disk is nearly full"; }},
      &status);
  ASSERT_TRUE(client.ok()) << client.status();

  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::LOADING; }));
  {
    MutexLock lock(&recorder.mu);
    EXPECT_EQ(recorder.last.bytes_total(), 100);
    EXPECT_EQ(recorder.last.node_warning(), "the node's disk is nearly full");
    EXPECT_EQ(recorder.last.fabric().one_shot_kib(), 256);
    EXPECT_EQ(MibOf(recorder.last.rank_memory()), (std::vector<int32_t>{8, 2, 3, 1}));
    ASSERT_EQ(recorder.last.start_size(), 1);
    EXPECT_EQ(recorder.last.start(0).part(), "read");
    EXPECT_EQ(recorder.last.start(0).milliseconds(), 800);
  }
  status.SetPhase(Phase::kReady);
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::READY; }));
  {
    MutexLock lock(&recorder.mu);
    ASSERT_EQ(recorder.identities.size(), 1u);
    EXPECT_EQ(recorder.identities[0].facts().at("kernels"), "avx2");
    EXPECT_EQ(recorder.identities[0].last_epoch(), 0);
    recorder.break_next = true;
    recorder.last.Clear();
  }
  // It comes back, says that it survived epoch 4, and is still ready.
  EXPECT_TRUE(recorder.Wait([&] { return recorder.identities.size() == 2; }));
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::READY; }));
  {
    MutexLock lock(&recorder.mu);
    EXPECT_EQ(recorder.identities[1].last_epoch(), 4);
    recorder.drain_next = true;
  }
  {
    const auto drained = [&] { return drain == absl::Seconds(7); };
    MutexLock lock(&mu);
    EXPECT_TRUE(mu.AwaitWithTimeout(absl::Condition(&drained), absl::Seconds(20)));
  }
  status.Fail("InvalidModelFile", "metadata a\xe0 is cut");  // bytes of a file, not UTF-8
  (*client)->Flush(absl::Seconds(20));
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.message() == "metadata a\\xe0 is cut"; }));
  client->reset();
  server->Shutdown();
}

TEST(JoinClient, TellsItsGpusOnEachStreamAndWhenTheyChange) {
  Recorder recorder;
  const std::string address = absl::StrCat("unix:/tmp/rempart_join_gpus_", getpid(), ".sock");
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&recorder);
  auto server = builder.BuildAndStart();
  WorkerStatus status;
  std::atomic<int64_t> version = 0;
  auto client = JoinClient::Start(address, {}, {.group_name = "ia/m-0"},
                                  {.gpu_version = [&] { return version.load(); },
                                   .gpus =
                                       [&] {
                                         group::v1::GpuReport report;
                                         report.set_driver_version(absl::StrCat(version.load()));
                                         return report;
                                       }},
                                  &status);
  ASSERT_TRUE(client.ok()) << client.status();
  const auto told = [&](size_t count) {
    return recorder.Wait([&, count] { return recorder.gpus.size() == count; });
  };
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::STARTING; }));
  EXPECT_TRUE(told(0)) << "nothing is known yet";
  version = 1;
  EXPECT_TRUE(told(1));
  {
    MutexLock lock(&recorder.mu);
    recorder.last.Clear();
  }
  status.SetPhase(Phase::kReady);
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::READY; }));
  EXPECT_TRUE(told(1)) << "once";
  {
    MutexLock lock(&recorder.mu);
    recorder.break_next = true;
  }
  EXPECT_TRUE(told(2)) << "again on a new stream";
  version = 2;
  EXPECT_TRUE(told(3));
  // A fault is heard before the failure that follows from it.
  version = 3;
  status.Fail("GpuBroken", "GPU 0: XID 79");
  (*client)->Flush(absl::Seconds(20));
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::FAILED; }));
  EXPECT_EQ(recorder.gpus_before_the_end, 4u);
  EXPECT_EQ(recorder.gpus.back().driver_version(), "3");
  client->reset();
  server->Shutdown();
}

TEST(WriteGpus, SaysAllThatIsKnown) {
  GpuSnapshot snapshot;
  snapshot.driver_version = "580.65.06";
  snapshot.cuda_version = "13.1";
  snapshot.problem = "XIDs are not heard";
  for (const char* uuid : {"GPU-a", "GPU-b"}) snapshot.gpus.emplace_back().uuid = uuid;
  GpuFacts& gpu = snapshot.gpus[0];
  gpu.name = "NVIDIA H200";
  gpu.pci_bus_id = "00000000:1B:00.0";
  gpu.compute_capability = "9.0";
  gpu.is_mig = gpu.remap_pending = gpu.remap_failed = true;
  gpu.total_bytes = int64_t{150} << 30;
  gpu.ecc_uncorrected = 2;
  gpu.ecc_uncorrected_lifetime = 12;
  gpu.condition = GpuCondition::kWantsReset;
  snapshot.pairs = {{.first = 0, .second = 1, .nvlinks = 18, .path = "SYS"}};
  group::v1::GpuReport report;
  WriteGpus(snapshot, &report);
  EXPECT_EQ(report.driver_version(), "580.65.06");
  EXPECT_EQ(report.cuda_version(), "13.1");
  EXPECT_EQ(report.problem(), "XIDs are not heard");
  ASSERT_EQ(report.gpus_size(), 2);
  EXPECT_EQ(report.gpus(0).uuid(), "GPU-a");
  EXPECT_EQ(report.gpus(0).name(), "NVIDIA H200");
  EXPECT_EQ(report.gpus(0).pci_bus_id(), "00000000:1B:00.0");
  EXPECT_EQ(report.gpus(0).compute_capability(), "9.0");
  EXPECT_TRUE(report.gpus(0).mig() && report.gpus(0).remap_pending() &&
              report.gpus(0).remap_failed() && report.gpus(0).wants_reset());
  EXPECT_EQ(report.gpus(0).memory_bytes(), int64_t{150} << 30);
  EXPECT_EQ(report.gpus(0).ecc_uncorrected(), 2);
  EXPECT_EQ(report.gpus(0).ecc_uncorrected_lifetime(), 12);
  EXPECT_EQ(report.gpus(1).ecc_uncorrected(), -1) << "not known";
  EXPECT_FALSE(report.gpus(1).wants_reset());
  ASSERT_EQ(report.pairs_size(), 1);
  EXPECT_EQ(report.pairs(0).second(), 1);
  EXPECT_EQ(report.pairs(0).nvlinks(), 18);
  EXPECT_EQ(report.pairs(0).path(), "SYS");
  EXPECT_FALSE(report.has_fault());
  snapshot.fault = {.gpu = 1,
                    .xid = 74,
                    .meaning = "m",
                    .advice = "a",
                    .at = absl::FromUnixMillis(1'800'000'000'123),
                    .is_broken = true};
  WriteGpus(snapshot, &report);
  EXPECT_EQ(report.fault().gpu(), 1);
  EXPECT_EQ(report.fault().xid(), 74);
  EXPECT_EQ(report.fault().meaning(), "m");
  EXPECT_EQ(report.fault().advice(), "a");
  EXPECT_EQ(report.fault().at_unix_ms(), 1'800'000'000'123);
  EXPECT_TRUE(report.fault().broken());
}

// An operator beside the one that leads.
class Standby : public group::v1::GroupControl::Service {
 public:
  grpc::Status Join(grpc::ServerContext*,
                    grpc::ServerReaderWriter<ToMember, FromMember>* stream) override {
    ToMember message;
    {
      MutexLock lock(&mu);
      ++asked;
      message.mutable_redirect()->set_leader_address(leader_address);
    }
    stream->Write(message);
    return {grpc::StatusCode::FAILED_PRECONDITION, "does not lead"};
  }

  Mutex mu;
  int asked = 0;
  std::string leader_address;
};

class RedirectedJoin : public testing::Test {
 protected:
  std::unique_ptr<grpc::Server> Serve(grpc::Service& service, const std::string& address) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&service);
    return builder.BuildAndStart();
  }
  std::string Address(const char* name) {
    return absl::StrCat("unix:/tmp/rempart_join_", getpid(), "_", name, ".sock");
  }

  WorkerStatus status;
};

TEST_F(RedirectedJoin, AWorkerGoesToTheLeaderAndBackToTheDoorWhenThatIsGone) {
  Recorder first;
  Recorder second;
  Standby standby;
  standby.leader_address = Address("first");
  auto door = Serve(standby, Address("door"));
  auto first_server = Serve(first, Address("first"));
  auto second_server = Serve(second, Address("second"));
  status.SetPhase(Phase::kReady);
  auto client = JoinClient::Start(Address("door"), {}, {.group_name = "ia/m-0"}, {}, &status);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(first.Wait([&] { return first.last.phase() == Progress::READY; }));
  // The leader dies, and for a while the standby still names it.
  first_server->Shutdown(std::chrono::system_clock::now());
  EXPECT_TRUE([&] {
    MutexLock lock(&standby.mu);
    const auto again = [&] { return standby.asked >= 3; };
    return standby.mu.AwaitWithTimeout(absl::Condition(&again), absl::Seconds(20));
  }());
  {
    MutexLock lock(&standby.mu);
    standby.leader_address = Address("second");
  }
  EXPECT_TRUE(second.Wait([&] { return second.last.phase() == Progress::READY; }));
  // It says where it comes from: its group serves all the time.
  EXPECT_EQ(second.identities.at(0).last_epoch(), 4);
  client->reset();
}

TEST_F(RedirectedJoin, WithoutAnAddressTheWorkerKeepsAskingAtTheDoor) {
  Standby standby;
  auto door = Serve(standby, Address("door"));
  auto client = JoinClient::Start(Address("door"), {}, {.group_name = "ia/m-0"}, {}, &status);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE([&] {
    MutexLock lock(&standby.mu);
    const auto again = [&] { return standby.asked >= 3; };
    return standby.mu.AwaitWithTimeout(absl::Condition(&again), absl::Seconds(20));
  }());
  // Nothing that a standby was told counts as said.
  status.Fail("InvalidModelFile", "truncated");
  door->Shutdown(std::chrono::system_clock::now());
  door.reset();
  Recorder leader;
  door = Serve(leader, Address("door"));
  (*client)->Flush(absl::Seconds(20));
  EXPECT_TRUE(leader.Wait([&] { return leader.last.reason() == "InvalidModelFile"; }));
  client->reset();
}

}  // namespace
}  // namespace rempart::worker
