// SPDX-License-Identifier: Apache-2.0
// The Join client against an operator's end that records what it hears.
#include "worker/api/join_client.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"

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
  bool break_next = false;
  bool drain_next = false;
};

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
  Mutex mu;
  absl::Duration drain = absl::ZeroDuration();
  auto client = JoinClient::Start(
      address, {}, {.group_name = "ia/m-0", .pod_name = "m-0-0", .facts = {{"kernels", "avx2"}}},
      {.on_drain =
           [&](absl::Duration deadline) {
             MutexLock lock(&mu);
             drain = deadline;
           },
       .ranks = {}},
      &status);
  ASSERT_TRUE(client.ok()) << client.status();

  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.phase() == Progress::LOADING; }));
  EXPECT_EQ(recorder.last.bytes_total(), 100);
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
  status.Fail("InvalidModelFile", "truncated");
  (*client)->Flush(absl::Seconds(20));
  EXPECT_TRUE(recorder.Wait([&] { return recorder.last.reason() == "InvalidModelFile"; }));
  client->reset();
  server->Shutdown();
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
