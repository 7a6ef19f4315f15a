// SPDX-License-Identifier: Apache-2.0
// A whole worker process but for its model and its signals: what it exits with, and what it does on
// the way.
#include "worker/api/worker_process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "tests/worker/api/attach_bench.h"
#include "tests/worker/api/fake_encoder.h"
#include "worker/api/health_server.h"

namespace rempart::worker {
namespace {

// The fake as the only rank of a group.
class FakeRank : public RankModel {
 public:
  int32_t vocabulary_size() const override { return model.vocabulary_size(); }
  absl::Status Begin(Communicator*, int32_t) override { return absl::OkStatus(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits) override {
    return model.Forward(batch, logits);
  }
  FakeModel model{256, 4};
};

FakeModel& FakeOf(LoadedModel& model) {
  return static_cast<FakeRank*>(model.ranks[0].get())->model;
}

absl::StatusOr<LoadedModel> LoadFake(const WorkerSettings&, WorkerStatus&) {
  LoadedModel model;
  model.engine = {.limits = {.block_size = 4}, .context_length = 512, .blocks_total = 256};
  model.ranks.push_back(std::make_unique<FakeRank>());
  model.vocabulary = std::make_unique<FakeVocabulary>();
  model.encoder = std::make_unique<FakeEncoder>();
  return model;
}

class WorkerProcessTest : public testing::Test {
 protected:
  WorkerProcessTest() {
    static int next = 0;
    socket_ = absl::StrCat("/tmp/rempart_worker_", getpid(), "_", ++next, ".sock");
    settings_.model_name = "ia/tiny";
    settings_.listen_address = "unix:" + socket_;
  }
  ~WorkerProcessTest() override { std::filesystem::remove(socket_); }

  std::string socket_;
  WorkerSettings settings_;
  StopRequest stop_;
};

TEST_F(WorkerProcessTest, ServesThenDrainsWhatRunsAndExitsWithZero) {
  int exit_code = -1;
  // The tenth token comes after the request to stop, the eleventh after the drain has begun, so
  // that the rest is generated while draining.
  Mutex mu;
  bool draining = false;
  const ModelLoader load = [&](const WorkerSettings& settings, WorkerStatus& status) {
    auto model = LoadFake(settings, status);
    FakeOf(*model).script = [&](const std::vector<int32_t>& context, float*) {
      if (context.size() == 15) stop_.Wait(1, absl::Now() + absl::Seconds(60));
      if (context.size() != 16) return;
      MutexLock lock(&mu);
      mu.AwaitWithTimeout(absl::Condition(&draining), absl::Seconds(60));
    };
    return model;
  };
  std::thread process([&] { exit_code = RunWorker(settings_, load, stop_); });
  auto stub = v1::Worker::NewStub(
      grpc::CreateChannel(settings_.listen_address, grpc::InsecureChannelCredentials()));
  // Refused as UNAVAILABLE until the model is there.
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ToWorker, v1::FromWorker>> stream;
  v1::FromWorker frame;
  for (bool welcomed = false; !welcomed;) {
    context = std::make_unique<grpc::ClientContext>();
    context->set_wait_for_ready(true);
    stream = stub->Attach(context.get());
    v1::ToWorker hello;
    hello.mutable_hello()->set_protocol(kAttachProtocol);
    stream->Write(hello);
    welcomed = stream->Read(&frame);
    if (!welcomed) {
      ASSERT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    }
  }
  EXPECT_EQ(frame.welcome().context_length(), 512);
  v1::ToWorker start;
  *start.mutable_start() = TextStart(1, "hello", 300);
  stream->Write(start);
  bool signalled = false;
  int tokens = 0;
  bool finished = false;
  int tokens_before = 0;
  while (stream->Read(&frame)) {
    if (frame.step().load().state() == v1::Load::DRAINING) {
      MutexLock lock(&mu);
      if (!draining) tokens_before = tokens;
      draining = true;
    }
    for (const v1::Delta& delta : frame.step().deltas()) {
      tokens += delta.token_ids_size();
      finished |= delta.has_finish();
      if (!signalled) stop_.Signal();
      signalled = true;
    }
  }
  stream->Finish();
  process.join();
  EXPECT_TRUE(finished);
  EXPECT_EQ(tokens, 300) << "a drain lets what runs end";
  EXPECT_TRUE(draining);
  EXPECT_LE(tokens_before, 11);
  EXPECT_EQ(exit_code, kExitOk);
}

TEST_F(WorkerProcessTest, ASignalWhileItLoadsNeedNotWaitForTheLoad) {
  AfterSignal while_loading = AfterSignal::kWait;
  const int exit_code = RunWorker(
      settings_,
      [&](const WorkerSettings& settings, WorkerStatus& status) {
        while_loading = stop_.Signal();
        return LoadFake(settings, status);
      },
      stop_);
  EXPECT_EQ(while_loading, AfterSignal::kExit);
  EXPECT_EQ(stop_.Signal(), AfterSignal::kWait) << "the load is over";
  EXPECT_EQ(exit_code, kExitOk) << "whoever lives until the model is there, ends";
}

TEST_F(WorkerProcessTest, ExitsWithTheKindOfFailure) {
  const auto exit_code = [&](absl::Status status) {
    return RunWorker(
        settings_,
        [&](const WorkerSettings&, WorkerStatus&) -> absl::StatusOr<LoadedModel> { return status; },
        stop_);
  };
  EXPECT_EQ(exit_code(absl::NotFoundError("no file")), kExitModel);
  EXPECT_EQ(exit_code(absl::InvalidArgumentError("truncated")), kExitModel);
  EXPECT_EQ(exit_code(absl::UnimplementedError("family mamba")), kExitModel);
  EXPECT_EQ(exit_code(absl::ResourceExhaustedError("needs 9 GiB")), kExitMemory);
  EXPECT_EQ(exit_code(absl::FailedPreconditionError("context too long")), kExitConfig);
}

TEST_F(WorkerProcessTest, AFirstTokenThatFailsIsAFailureToStart) {
  const int exit_code = RunWorker(
      settings_,
      [](const WorkerSettings& settings, WorkerStatus& status) {
        auto model = LoadFake(settings, status);
        FakeOf(*model).next_status = absl::InternalError("broken");
        return model;
      },
      stop_);
  EXPECT_EQ(exit_code, kExitRuntime);
}

TEST_F(WorkerProcessTest, AModelThatTurnsOutWrongWhileItServesEndsTheProcess) {
  const auto exit_code = [&](absl::Status outcome) {
    return RunWorker(
        settings_,
        [&](const WorkerSettings& settings, WorkerStatus& status) {
          auto model = LoadFake(settings, status);
          model->check_later = [&, outcome](std::stop_token) {
            if (outcome.ok()) stop_.Signal();
            return outcome;
          };
          return model;
        },
        stop_);
  };
  EXPECT_EQ(exit_code(absl::DataLossError("changed")), kExitModel);
  EXPECT_EQ(exit_code(absl::OkStatus()), kExitOk);
}

TEST_F(WorkerProcessTest, ATakenPortIsSaidBeforeTheModelIsLoaded) {
  auto taken = HealthServer::Start("127.0.0.1:0", {});
  ASSERT_TRUE(taken.ok());
  const std::string address = absl::StrCat("127.0.0.1:", (*taken)->port());
  const ModelLoader never = [](const WorkerSettings&,
                               WorkerStatus&) -> absl::StatusOr<LoadedModel> {
    ADD_FAILURE() << "loaded";
    return absl::InternalError("");
  };
  settings_.health_address = address;
  EXPECT_EQ(RunWorker(settings_, never, stop_), kExitAddress);
  settings_.health_address.clear();
  settings_.listen_address = address;
  EXPECT_EQ(RunWorker(settings_, never, stop_), kExitAddress);
}

}  // namespace
}  // namespace rempart::worker
