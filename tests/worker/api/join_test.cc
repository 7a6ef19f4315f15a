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

}  // namespace
}  // namespace rempart::worker
