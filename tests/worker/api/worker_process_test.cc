// SPDX-License-Identifier: Apache-2.0
// A whole worker process but for its model and its signals: what it exits with, and what it does on
// the way.
#include "worker/api/worker_process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "proto/group/v1/group.grpc.pb.h"
#include "tests/worker/api/attach_bench.h"
#include "tests/worker/api/fake_encoder.h"
#include "tests/worker/device/fake_nvml.h"
#include "worker/api/health_server.h"
#include "worker/device/device.h"

namespace rempart::worker {
namespace {

constexpr absl::Duration kMoment = absl::Milliseconds(10);

// The fake as the only rank of a group.
class FakeRank : public RankModel {
 public:
  int32_t vocabulary_size() const override { return model.vocabulary_size(); }
  absl::Status Begin(Communicator*, int32_t) override { return absl::OkStatus(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override {
    return model.Forward(batch, logits, drawn);
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

// The operator's end of the Join stream, for one worker.
class Operator : public group::v1::GroupControl::Service {
 public:
  explicit Operator(const std::string& address) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Operator() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Join(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<group::v1::ToMember, group::v1::FromMember>* stream) override {
    {
      MutexLock lock(&mu_);
      stream_ = stream;
    }
    group::v1::FromMember message;
    while (stream->Read(&message)) {
      MutexLock lock(&mu_);
      if (message.has_progress()) last_ = message.progress();
      if (message.has_gpus()) gpus_ = message.gpus();
    }
    MutexLock lock(&mu_);
    stream_ = nullptr;
    return grpc::Status::OK;
  }

  void Send(const group::v1::ToMember& order) {
    MutexLock lock(&mu_);
    ASSERT_NE(stream_, nullptr);
    stream_->Write(order);
  }
  void Drain() {
    group::v1::ToMember order;
    order.mutable_drain()->set_deadline_seconds(600);
    Send(order);
  }
  void Resume() {
    group::v1::ToMember order;
    order.mutable_resume();
    Send(order);
  }
  group::v1::GpuReport AwaitGpus(int count) {
    const auto heard = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return gpus_.gpus_size() == count;
    };
    MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&heard), absl::Seconds(60)));
    return gpus_;
  }
  group::v1::GpuReport gpus() {
    MutexLock lock(&mu_);
    return gpus_;
  }
  group::v1::Progress progress() {
    MutexLock lock(&mu_);
    return last_;
  }
  bool Hears(group::v1::Progress::Phase phase, int32_t requests) {
    const auto heard = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return last_.phase() == phase && last_.requests() == requests;
    };
    MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&heard), absl::Seconds(60));
  }

 private:
  Mutex mu_;
  grpc::ServerReaderWriter<group::v1::ToMember, group::v1::FromMember>* stream_
      ABSL_GUARDED_BY(mu_) = nullptr;
  group::v1::Progress last_ ABSL_GUARDED_BY(mu_);
  group::v1::GpuReport gpus_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<grpc::Server> server_;
};

// A router's stream to a worker that may still be loading.
class Attached {
 public:
  explicit Attached(const std::string& address)
      : stub_(
            v1::Worker::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    // Refused as UNAVAILABLE until the model is there.
    for (bool welcomed = false; !welcomed;) {
      context_ = std::make_unique<grpc::ClientContext>();
      context_->set_wait_for_ready(true);
      stream_ = stub_->Attach(context_.get());
      v1::ToWorker hello;
      hello.mutable_hello()->set_protocol(kAttachProtocol);
      stream_->Write(hello);
      v1::FromWorker frame;
      welcomed = stream_->Read(&frame);
      if (welcomed) {
        welcome = frame.welcome();
      } else if (stream_->Finish().error_code() != grpc::StatusCode::UNAVAILABLE) {
        ADD_FAILURE() << "not welcome";
        return;
      }
    }
  }

  void Start(uint64_t request_id, int32_t max_tokens) {
    v1::ToWorker start;
    *start.mutable_start() = TextStart(request_id, "hello", max_tokens);
    stream_->Write(start);
  }
  // Reads one frame; false at the stream's end.
  bool Read() {
    v1::FromWorker frame;
    if (!stream_->Read(&frame)) return false;
    if (!frame.has_step()) return true;
    load = frame.step().load();
    for (const v1::Delta& delta : frame.step().deltas()) {
      Received& answer = answers[delta.request_id()];
      answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                              delta.token_ids().end());
      if (delta.has_finish()) answer.finish = delta.finish(), ++answer.endings;
      if (delta.has_error()) answer.error = delta.error(), ++answer.endings;
    }
    return true;
  }
  Received& Wait(uint64_t request_id) {
    while (answers[request_id].endings == 0 && Read()) {
    }
    return answers[request_id];
  }
  void Finish() { stream_->Finish(); }

  v1::Welcome welcome;
  v1::Load load;
  std::map<uint64_t, Received> answers;

 private:
  std::unique_ptr<v1::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ToWorker, v1::FromWorker>> stream_;
};

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
  Attached router(settings_.listen_address);
  EXPECT_EQ(router.welcome.context_length(), 512);
  router.Start(1, 300);
  size_t tokens_before = 0;
  while (router.Read()) {
    const Received& answer = router.answers[1];
    if (router.load.state() == v1::Load::DRAINING) {
      MutexLock lock(&mu);
      if (!draining) tokens_before = answer.token_ids.size();
      draining = true;
    }
    if (!answer.token_ids.empty() && stop_.signals() == 0) stop_.Signal();
  }
  router.Finish();
  process.join();
  const Received& answer = router.answers[1];
  EXPECT_EQ(answer.finish.completion_tokens(), 300);
  EXPECT_EQ(answer.token_ids.size(), 300u) << "a drain lets what runs end";
  EXPECT_TRUE(draining);
  EXPECT_LE(tokens_before, 11u);
  EXPECT_EQ(exit_code, kExitOk);
}

TEST_F(WorkerProcessTest, AnOrderedDrainLetsWhatRunsEndRefusesTheRestAndCanBeTakenBack) {
  Operator control(absl::StrCat("unix:", socket_, ".control"));
  settings_.control_address = absl::StrCat("unix:", socket_, ".control");
  settings_.group_name = "ia/tiny-0";
  // The tenth token waits for the drain, so that the rest is generated while draining.
  Mutex mu;
  bool draining = false;
  const ModelLoader load = [&](const WorkerSettings& settings, WorkerStatus& status) {
    auto model = LoadFake(settings, status);
    FakeOf(*model).script = [&](const std::vector<int32_t>& context, float*) {
      if (context.size() != 15) return;
      MutexLock lock(&mu);
      mu.AwaitWithTimeout(absl::Condition(&draining), absl::Seconds(60));
    };
    return model;
  };
  int exit_code = -1;
  std::thread process([&] { exit_code = RunWorker(settings_, load, stop_); });
  Attached router(settings_.listen_address);
  EXPECT_TRUE(control.Hears(group::v1::Progress::READY, 0));
  router.Start(1, 300);
  EXPECT_TRUE(control.Hears(group::v1::Progress::READY, 1));
  control.Drain();
  EXPECT_TRUE(control.Hears(group::v1::Progress::DRAINING, 1)) << "one still runs";
  {
    MutexLock lock(&mu);
    draining = true;
  }
  // Told in band, so that the router sends nothing new; what crosses it on the way is refused.
  while (router.load.state() != v1::Load::DRAINING) ASSERT_TRUE(router.Read());
  router.Start(2, 5);
  EXPECT_EQ(router.Wait(2).error.code(), v1::Failure::DRAINING);
  EXPECT_EQ(router.Wait(1).finish.completion_tokens(), 300);
  EXPECT_EQ(router.answers[1].token_ids.size(), 300u);
  EXPECT_TRUE(control.Hears(group::v1::Progress::DRAINING, 0)) << "now it may be replaced";

  control.Resume();
  EXPECT_TRUE(control.Hears(group::v1::Progress::READY, 0));
  while (router.load.state() != v1::Load::READY) ASSERT_TRUE(router.Read());
  router.Start(3, 5);
  EXPECT_EQ(router.Wait(3).finish.completion_tokens(), 5);
  stop_.Signal();
  while (router.Read()) {
  }
  router.Finish();
  process.join();
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
  EXPECT_EQ(exit_code(DeviceUnavailable("no driver")), kExitDevice);
  EXPECT_EQ(exit_code(absl::UnavailableError("cannot read")), kExitRuntime);
}

// A worker on the second of CUDA's GPUs, which is the first of the driver's.
class WorkerOnGpus : public WorkerProcessTest {
 protected:
  WorkerOnGpus() : control_(absl::StrCat("unix:", socket_, ".control")) {
    settings_.control_address = absl::StrCat("unix:", socket_, ".control");
    settings_.group_name = "ia/tiny-0";
    settings_.device = DeviceKind::kGpu;
    settings_.first_gpu = 1;
    host_.find = []() -> absl::StatusOr<std::vector<std::string>> {
      return std::vector<std::string>{"0000:12:00.0", "0000:10:00.0"};
    };
    host_.nvml_library = REMPART_FAKE_NVML;
    host_.end_process = [this](int exit_code) {
      ended_with_ = exit_code;
      stop_.Signal();
    };
  }
  ~WorkerOnGpus() override { Stop(); }
  void Run() {
    process_.emplace([this] { exit_code_ = RunWorker(settings_, LoadFake, stop_, host_); });
    EXPECT_TRUE(control_.Hears(group::v1::Progress::READY, 0));
  }
  void Stop() {
    if (!process_.has_value()) return;
    if (stop_.signals() == 0) stop_.Signal();
    process_->join();
    process_.reset();
  }

  FakeNvml driver_{REMPART_FAKE_NVML};
  Operator control_;
  GpuHost host_;
  std::atomic<int> ended_with_ = -1;
  std::atomic<int> exit_code_ = -1;
  std::optional<std::thread> process_;
};

TEST_F(WorkerOnGpus, TellsItsGpusAndWhatHappensToThem) {
  Run();
  const group::v1::GpuReport report = control_.AwaitGpus(1);
  EXPECT_EQ(report.driver_version(), "580.65.06");
  EXPECT_EQ(report.cuda_version(), "13.1");
  EXPECT_EQ(report.gpus(0).uuid(), "GPU-0");
  EXPECT_EQ(report.gpus(0).name(), "NVIDIA H200");
  EXPECT_FALSE(report.has_fault());
  // A fault of an application changes nothing else.
  driver_.Raise(0, 31);
  for (int i = 0; i < 2000 && !control_.gpus().has_fault(); ++i) absl::SleepFor(kMoment);
  const group::v1::GpuFault fault = control_.gpus().fault();
  EXPECT_EQ(fault.xid(), 31);
  EXPECT_EQ(fault.gpu(), 0);
  EXPECT_FALSE(fault.broken());
  EXPECT_NEAR(static_cast<double>(fault.at_unix_ms()),
              static_cast<double>(absl::ToUnixMillis(absl::Now())), 120e3);
  EXPECT_TRUE(control_.Hears(group::v1::Progress::READY, 0));
  Stop();
  EXPECT_EQ(ended_with_, -1);
  EXPECT_EQ(exit_code_, kExitOk);
  EXPECT_EQ(driver_.open_count(), 0);
}

TEST_F(WorkerOnGpus, ABrokenGpuEndsTheProcessWithTheReason) {
  Run();
  control_.AwaitGpus(1);
  driver_.Raise(2, 48);  // of another
  driver_.Raise(0, 79);
  EXPECT_TRUE(control_.Hears(group::v1::Progress::FAILED, 0));
  const group::v1::Progress last = control_.progress();
  EXPECT_EQ(last.reason(), "GpuBroken");
  EXPECT_EQ(last.message(),
            "GPU 0 (NVIDIA H200, GPU-0): XID 79: the GPU has fallen off the bus. The worker ends; "
            "reboot the node; if it comes back, check the GPU's seat, power and slot");
  EXPECT_TRUE(control_.gpus().fault().broken()) << "told before";
  EXPECT_EQ(control_.gpus().fault().xid(), 79);
  Stop();
  EXPECT_EQ(ended_with_, kExitRuntime);
  EXPECT_EQ(control_.progress().phase(), group::v1::Progress::FAILED) << "nothing follows";
}

TEST_F(WorkerOnGpus, ServesWithoutTheDriversLibrary) {
  host_.nvml_library = "/nonexistent/libnvidia-ml.so.1";
  Run();
  for (int i = 0; i < 2000 && control_.gpus().problem().empty(); ++i) absl::SleepFor(kMoment);
  EXPECT_NE(control_.gpus().problem().find("no NVIDIA driver"), std::string::npos);
  EXPECT_EQ(control_.gpus().gpus_size(), 0);
  EXPECT_TRUE(control_.Hears(group::v1::Progress::READY, 0));
}

TEST_F(WorkerOnGpus, OnACpuNothingIsWatched) {
  settings_.device = DeviceKind::kCpu;
  std::atomic<bool> asked = false;
  host_.find = [&]() -> absl::StatusOr<std::vector<std::string>> {
    asked = true;
    return absl::InternalError("asked");
  };
  Run();
  Stop();
  EXPECT_FALSE(asked);
  EXPECT_EQ(control_.gpus().problem(), "");
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
