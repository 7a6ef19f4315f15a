// SPDX-License-Identifier: Apache-2.0
// Whole worker processes of one group, each rank on an emulated GPU, linked by the NCCL
// communicator over a library made for tests: in one pod and over several, and what a lost pod
// leaves.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "proto/group/v1/group.grpc.pb.h"
#include "tests/worker/api/attach_bench.h"
#include "tests/worker/api/tiny_tokenizer.h"
#include "tests/worker/comm/fake_nccl.h"
#include "worker/api/load_model.h"
#include "worker/api/worker_process.h"
#include "worker/comm/nccl_library.h"
#include "worker/comm/one_shot.h"
#include "worker/device/emulated_device.h"

namespace rempart::worker {
namespace {

namespace fs = std::filesystem;
using group::v1::Progress;

// The operator's end of the Join streams of one group.
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
    group::v1::FromMember message;
    int32_t pod = -1;
    while (stream->Read(&message)) {
      MutexLock lock(&mu_);
      if (message.has_identity()) {
        pod = message.identity().pod_index();
        members_[pod] = {stream, message.identity(), {}};
      } else if (message.has_progress() && pod >= 0) {
        members_[pod].progress = message.progress();
      }
    }
    MutexLock lock(&mu_);
    if (pod >= 0 && members_[pod].stream == stream) members_.erase(pod);
    return grpc::Status::OK;
  }

  // Begins an epoch of the pods 0 to pods - 1, lets it go on, and waits until the leader serves.
  bool RunEpoch(int32_t epoch, int32_t pods) {
    if (!Await(pods, epoch - 1, Progress::STARTING)) return false;
    group::v1::ToMember begin;
    begin.mutable_epoch()->set_epoch(epoch);
    begin.mutable_epoch()->set_key(std::string(32, static_cast<char>('a' + epoch)));
    {
      MutexLock lock(&mu_);
      for (int32_t pod = 0; pod < pods; ++pod) {
        begin.mutable_epoch()->add_addresses(members_[pod].identity.address());
        begin.mutable_epoch()->add_data_addresses(members_[pod].identity.data_address());
      }
    }
    Send(begin);
    if (!Await(pods, epoch, Progress::LOADED)) return false;
    group::v1::ToMember go;
    go.mutable_go()->set_epoch(epoch);
    Send(go);
    return Await(1, epoch, Progress::READY);
  }
  // What the pod says of its GPUs.
  int32_t OneShotKib(int32_t pod) {
    MutexLock lock(&mu_);
    return members_[pod].progress.fabric().one_shot_kib();
  }
  void Abort(int32_t epoch) {
    group::v1::ToMember abort;
    abort.mutable_abort()->set_epoch(epoch);
    abort.mutable_abort()->set_reason("the test ends it");
    abort.mutable_abort()->set_blamed_rank(-1);
    Send(abort);
  }

 private:
  struct Member {
    grpc::ServerReaderWriter<group::v1::ToMember, group::v1::FromMember>* stream = nullptr;
    group::v1::Identity identity;
    Progress progress;
  };

  void Send(const group::v1::ToMember& order) {
    MutexLock lock(&mu_);
    for (auto& [pod, member] : members_) member.stream->Write(order);
  }
  // Until the first `pods` members are in this phase; STARTING: of no epoch that runs.
  bool Await(int32_t pods, int32_t epoch, Progress::Phase phase) {
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      for (int32_t pod = 0; pod < pods; ++pod) {
        const auto found = members_.find(pod);
        if (found == members_.end() || found->second.progress.phase() != phase) return false;
        if (phase != Progress::STARTING && found->second.progress.epoch() != epoch) return false;
      }
      return true;
    };
    MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(120));
  }

  Mutex mu_;
  std::map<int32_t, Member> members_ ABSL_GUARDED_BY(mu_);  // by pod
  std::unique_ptr<grpc::Server> server_;
};

// Does nothing of a step until somebody waits for it, from the end of the first one on until all is
// waited for: what links the ranks is no step.
class SteppingDevice : public EmulatedDevice {
 public:
  using EmulatedDevice::EmulatedDevice;
  void Mark(int place) override {
    Defer();
    EmulatedDevice::Mark(place);
  }
  absl::Status Finish() override {
    const absl::Status finished = EmulatedDevice::Finish();
    WorkAtOnce();
    return finished;
  }
};

// One pod's process, as a thread.
class Pod {
 public:
  enum class Sums { kByNccl, kInOneShot };
  // Of its devices: at once, or when they are waited for.
  enum class Work { kAtOnce, kDeferred };
  Pod(const WorkerSettings& settings, const std::string& library, Sums sums = Sums::kByNccl,
      Work work = Work::kAtOnce)
      : thread_([this, settings, library, sums, work] {
          const GpuOpener open = [work](int) -> absl::StatusOr<std::unique_ptr<Device>> {
            constexpr int64_t kMemory = int64_t{4} << 30;
            if (work == Work::kDeferred) return std::make_unique<SteppingDevice>(kMemory);
            return std::make_unique<EmulatedDevice>(kMemory);
          };
          const ModelLoader load = [&](const WorkerSettings& wanted, WorkerStatus& status) {
            ++loads_;
            const CollectiveLoader collectives = [&] { return Load(library, sums); };
            return LoadModelFile(wanted, open, collectives, status);
          };
          const MemoryReader memory = [this] {
            return MemoryUse{kMemoryLimit, kMemoryLimit - memory_left_, "of a test"};
          };
          exit_code_ = RunWorker(settings, load, stop_, {}, memory);
        }) {}
  // Waits until it has ended by itself.
  int Join() {
    thread_.join();
    return exit_code_;
  }
  // Ends it at once, as a second signal does.
  int End() {
    stop_.Signal();
    stop_.Signal();
    if (thread_.joinable()) thread_.join();
    return exit_code_;
  }
  ~Pod() { End(); }
  int loads() const { return loads_; }
  static constexpr int64_t kMemoryLimit = int64_t{1000} << 20;
  void SetMemoryLeft(int64_t bytes) { memory_left_ = bytes; }

 private:
  static absl::StatusOr<std::unique_ptr<CollectiveLibrary>> Load(const std::string& library,
                                                                 Sums sums) {
    ASSIGN_OR_RETURN(std::unique_ptr<CollectiveLibrary> nccl, Nccl::Load(library));
    if (sums == Sums::kByNccl) return nccl;
    OneShotOptions options;
    options.use = OneShotUse::kAlways;
    options.measure_time = std::chrono::milliseconds(0);
    return std::make_unique<OneShot>(std::move(nccl), options);
  }

  StopRequest stop_;
  std::atomic<int> loads_ = 0;
  std::atomic<int64_t> memory_left_ = kMemoryLimit;
  std::atomic<int> exit_code_ = -1;
  std::thread thread_;
};

class DeviceGroupTest : public testing::Test {
 protected:
  DeviceGroupTest() {
    static int next = 0;
    root_ = absl::StrCat("/tmp/rempart_device_group_", getpid(), "_", ++next, "/");
    fs::create_directories(root_ + "model");
    fs::copy("tests/goldens/families/llama3/config.json", root_ + "model");
    fs::copy("tests/goldens/families/llama3/model.safetensors", root_ + "model");
    std::ofstream(root_ + "model/tokenizer.json") << kTokenizer;
    settings_.model_name = "ia/tiny";
    settings_.group_name = "ia/tiny-0";
    settings_.model_path = root_ + "model";
    settings_.device = DeviceKind::kGpu;
    settings_.engine.threads = 1;
    settings_.engine.max_sequences = 2;
    settings_.engine.max_step_tokens = 16;
    settings_.engine.context_length = 96;
    settings_.engine.kv_cache_bytes = 1 << 20;
    void* const handle = dlopen(REMPART_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
    nccl_ = reinterpret_cast<FakeNcclControls* (*)()>(dlsym(handle, "FakeNccl"))();
    nccl_->inits = nccl_->aborts = 0;
  }
  ~DeviceGroupTest() override { fs::remove_all(root_); }

  WorkerSettings Settings(int32_t tensor, int32_t ranks_per_pod, int32_t pod,
                          int32_t stages = 1) const {
    WorkerSettings settings = settings_;
    settings.tensor_parallel = tensor;
    settings.pipeline_parallel = stages;
    settings.ranks_per_pod = ranks_per_pod;
    settings.pod_count = stages * tensor / ranks_per_pod;
    settings.pod_index = pod;
    settings.pod_name = absl::StrCat("tiny-0-", pod);
    settings.listen_address = absl::StrCat("unix:", root_, "pod", pod, ".sock");
    settings.advertised_address = settings.listen_address;
    settings.first_gpu = pod * ranks_per_pod;
    if (settings.pod_count == 1) return settings;
    settings.data_address = "127.0.0.1:0";
    settings.control_address = Control();
    return settings;
  }
  std::string Control() const { return absl::StrCat("unix:", root_, "control.sock"); }

  // The tokens of a greedy answer of the leader, which may be loading still.
  std::vector<int32_t> Ask() const {
    bool has_failed = false;
    std::vector<int32_t> tokens = Ask(
        12, [] {}, has_failed);
    EXPECT_FALSE(has_failed);
    return tokens;
  }
  // The same of `count` tokens; `midway` is called when the first of them is there.
  std::vector<int32_t> Ask(int count, const std::function<void()>& midway, bool& has_failed) const {
    const auto give_up = std::chrono::system_clock::now() + std::chrono::seconds(120);
    auto stub = v1::Worker::NewStub(grpc::CreateChannel(absl::StrCat("unix:", root_, "pod0.sock"),
                                                        grpc::InsecureChannelCredentials()));
    while (std::chrono::system_clock::now() < give_up) {
      grpc::ClientContext context;
      context.set_deadline(give_up);
      context.set_wait_for_ready(true);
      const auto stream = stub->Attach(&context);
      v1::ToWorker message;
      message.mutable_hello()->set_router_id("test/0");
      message.mutable_hello()->set_protocol(kAttachProtocol);
      stream->Write(message);
      v1::FromWorker frame;
      if (!stream->Read(&frame)) {
        stream->Finish();
        absl::SleepFor(absl::Milliseconds(20));
        continue;
      }
      message.Clear();
      *message.mutable_start() = TextStart(1, "hihihihihi", count);
      message.mutable_start()->mutable_sampling()->set_ignore_eos(true);
      stream->Write(message);
      std::vector<int32_t> tokens;
      while (stream->Read(&frame)) {
        for (const v1::Delta& delta : frame.step().deltas()) {
          if (tokens.empty() && delta.token_ids_size() > 0) midway();
          tokens.insert(tokens.end(), delta.token_ids().begin(), delta.token_ids().end());
          has_failed |= delta.has_error();
          if (delta.has_error()) last_error_ = delta.error().message();
          if (delta.has_finish() || delta.has_error()) context.TryCancel();
        }
      }
      stream->Finish();
      return tokens;
    }
    ADD_FAILURE() << "nobody serves";
    return {};
  }

  // What one GPU answers.
  std::vector<int32_t> Expected() const {
    Pod alone(Settings(1, 1, 0), REMPART_FAKE_NCCL);
    const std::vector<int32_t> tokens = Ask();
    EXPECT_EQ(tokens.size(), 12u);
    EXPECT_EQ(alone.End(), kExitOk);
    return tokens;
  }

  // Asks until it is refused, or not any more; returns why it was.
  std::string AskUntil(bool refused) const {
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    for (bool has_failed = !refused; has_failed != refused;) {
      if (absl::Now() > give_up) {
        ADD_FAILURE() << (refused ? "never refused" : "refused for ever: ") << last_error_;
        break;
      }
      has_failed = false;
      last_error_.clear();
      Ask(
          1, [] {}, has_failed);
    }
    return last_error_;
  }

  std::string root_;
  WorkerSettings settings_;
  FakeNcclControls* nccl_ = nullptr;
  mutable std::string last_error_;
};

TEST_F(DeviceGroupTest, RanksOfOnePodAnswerAsOneGpuDoes) {
  const std::vector<int32_t> expected = Expected();
  EXPECT_EQ(nccl_->inits, 0) << "one rank needs no NCCL";
  nccl_->collectives = nccl_->symmetric = nccl_->windows = nccl_->gathers = 0;
  Pod pod(Settings(2, 2, 0), REMPART_FAKE_NCCL);
  EXPECT_EQ(Ask(), expected);
  // By each rank: logits of the warm-up's token and of twelve others, of which eleven were begun
  // ahead and began with the tokens of the step before.
  EXPECT_EQ(nccl_->gathers, 2 * (13 + 11));
  EXPECT_EQ(nccl_->inits, 2);
  // All but the first sum, which proves the group, lie in what each rank has registered.
  EXPECT_EQ(nccl_->windows, 2);
  EXPECT_GT(nccl_->symmetric, 10);
  EXPECT_EQ(nccl_->collectives, 2 * (nccl_->symmetric + 1));
  EXPECT_EQ(pod.End(), kExitOk);
  EXPECT_EQ(nccl_->aborts, 2);
  EXPECT_EQ(nccl_->allocations, 0);
}

TEST_F(DeviceGroupTest, RanksWhoseGpusReachEachOtherSumWithoutNccl) {
  const std::vector<int32_t> expected = Expected();
  Pod by_nccl(Settings(2, 2, 0), REMPART_FAKE_NCCL);
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(by_nccl.End(), kExitOk);
  const int collectives = nccl_->collectives.exchange(0);
  Pod pod(Settings(2, 2, 0), REMPART_FAKE_NCCL, Pod::Sums::kInOneShot);
  EXPECT_EQ(Ask(), expected);
  // What is left to it: logits, and what it was measured by.
  EXPECT_LT(nccl_->collectives, collectives / 2);
  EXPECT_EQ(pod.End(), kExitOk);
}

TEST_F(DeviceGroupTest, APodThatIsLostEndsSumsInOneShotAndTheNextEpochLinksThemAnew) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  Pod first(Settings(2, 1, 0), REMPART_FAKE_NCCL, Pod::Sums::kInOneShot);
  {
    Pod lost(Settings(2, 1, 1), REMPART_FAKE_NCCL, Pod::Sums::kInOneShot);
    ASSERT_TRUE(control.RunEpoch(1, 2));
    EXPECT_EQ(Ask(), expected);
    EXPECT_EQ(control.OneShotKib(0), 1024);
    EXPECT_EQ(control.OneShotKib(1), 1024);
  }
  Pod second(Settings(2, 1, 1), REMPART_FAKE_NCCL, Pod::Sums::kInOneShot);
  ASSERT_TRUE(control.RunEpoch(2, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(first.loads(), 1);
}

TEST_F(DeviceGroupTest, PodsAnswerAsOneGpuDoesAndEachEpochLinksThemAnew) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  Pod first(Settings(2, 1, 0), REMPART_FAKE_NCCL), second(Settings(2, 1, 1), REMPART_FAKE_NCCL);
  ASSERT_TRUE(control.RunEpoch(1, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(nccl_->inits, 2);
  control.Abort(1);
  ASSERT_TRUE(control.RunEpoch(2, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(nccl_->inits, 4);
  EXPECT_EQ(nccl_->aborts, 2);
  EXPECT_EQ(first.loads(), 1) << "weights stay";
}

// Also of a pod that follows: the KV cache grows there as it does here.
TEST_F(DeviceGroupTest, APodThatIsShortOfMemoryStopsAdmissionByNameAndNothingElse) {
  Operator control(Control());
  Pod first(Settings(2, 1, 0), REMPART_FAKE_NCCL), second(Settings(2, 1, 1), REMPART_FAKE_NCCL);
  ASSERT_TRUE(control.RunEpoch(1, 2));
  const std::vector<int32_t> before = Ask();
  second.SetMemoryLeft(20 << 20);
  EXPECT_EQ(AskUntil(true),
            "the worker has reached its memory limit (pod 1: 980 of 1000 MiB are in use): try "
            "again later");
  second.SetMemoryLeft(40 << 20);
  first.SetMemoryLeft(10 << 20);
  const absl::Time give_up = absl::Now() + absl::Seconds(30);
  const std::string both = "(990 of 1000 MiB are in use; pod 1: 960 of 1000 MiB are in use)";
  while (AskUntil(true).find(both) == std::string::npos && absl::Now() < give_up) {
  }
  EXPECT_NE(last_error_.find(both), std::string::npos) << last_error_;
  first.SetMemoryLeft(500 << 20);
  second.SetMemoryLeft(500 << 20);
  AskUntil(false);
  EXPECT_EQ(Ask(), before);
  EXPECT_EQ(first.loads(), 1);
  EXPECT_EQ(second.loads(), 1);
  EXPECT_EQ(nccl_->inits, 2) << "one epoch";
}

TEST_F(DeviceGroupTest, APodThatIsLostEndsTheEpochAndAnotherTakesItsPlace) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  Pod first(Settings(2, 1, 0), REMPART_FAKE_NCCL);
  {
    Pod lost(Settings(2, 1, 1), REMPART_FAKE_NCCL);
    ASSERT_TRUE(control.RunEpoch(1, 2));
    EXPECT_EQ(Ask(), expected);
  }
  Pod second(Settings(2, 1, 1), REMPART_FAKE_NCCL);
  ASSERT_TRUE(control.RunEpoch(2, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(first.loads(), 1);
  EXPECT_EQ(nccl_->aborts, 2);
}

// The steps of the second pod come by the wire, and its device has done nothing of one when the
// next is there.
TEST_F(DeviceGroupTest, PodsBeginStepsAhead) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  nccl_->gathers = 0;
  Pod first(Settings(2, 1, 0), REMPART_FAKE_NCCL, Pod::Sums::kByNccl, Pod::Work::kDeferred);
  Pod second(Settings(2, 1, 1), REMPART_FAKE_NCCL, Pod::Sums::kByNccl, Pod::Work::kDeferred);
  ASSERT_TRUE(control.RunEpoch(1, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(nccl_->gathers, 2 * (13 + 11));
}

// With a step on its way and another one behind it, neither of which can end.
TEST_F(DeviceGroupTest, APodThatIsLostAmongStepsEndsThemAndTheNextEpochStartsAfresh) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  Pod first(Settings(2, 1, 0), REMPART_FAKE_NCCL, Pod::Sums::kByNccl, Pod::Work::kDeferred);
  {
    Pod lost(Settings(2, 1, 1), REMPART_FAKE_NCCL, Pod::Sums::kByNccl, Pod::Work::kDeferred);
    ASSERT_TRUE(control.RunEpoch(1, 2));
    bool has_failed = false;
    const auto midway = [&] {
      nccl_->stalls_collectives = true;
      lost.End();
    };
    EXPECT_LT(Ask(80, midway, has_failed).size(), 80u);
    EXPECT_TRUE(has_failed);
    nccl_->stalls_collectives = false;
  }
  Pod second(Settings(2, 1, 1), REMPART_FAKE_NCCL, Pod::Sums::kByNccl, Pod::Work::kDeferred);
  ASSERT_TRUE(control.RunEpoch(2, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(first.loads(), 1);
}

// A stage of one GPU needs no NCCL.
TEST_F(DeviceGroupTest, StagesInPodsOfTheirOwnAnswerAsOneGpuDoes) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  Pod first(Settings(1, 1, 0, 3), "/nonexistent/libnccl.so.2");
  Pod second(Settings(1, 1, 1, 3), "/nonexistent/libnccl.so.2");
  Pod third(Settings(1, 1, 2, 3), "/nonexistent/libnccl.so.2");
  ASSERT_TRUE(control.RunEpoch(1, 3));
  EXPECT_EQ(Ask(), expected);
  control.Abort(1);
  ASSERT_TRUE(control.RunEpoch(2, 3));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(second.loads(), 1) << "weights stay";
}

TEST_F(DeviceGroupTest, StagesOfSeveralRanksLinkTheirGpusAndALostOneEndsTheEpochOfAll) {
  const std::vector<int32_t> expected = Expected();
  Operator control(Control());
  Pod first(Settings(2, 2, 0, 2), REMPART_FAKE_NCCL);
  {
    Pod lost(Settings(2, 2, 1, 2), REMPART_FAKE_NCCL);
    ASSERT_TRUE(control.RunEpoch(1, 2));
    EXPECT_EQ(Ask(), expected);
    EXPECT_EQ(nccl_->inits, 4) << "two ranks in each of two stages";
  }
  Pod second(Settings(2, 2, 1, 2), REMPART_FAKE_NCCL);
  ASSERT_TRUE(control.RunEpoch(2, 2));
  EXPECT_EQ(Ask(), expected);
  EXPECT_EQ(nccl_->inits, 8);
  EXPECT_EQ(first.loads(), 1);
}

TEST_F(DeviceGroupTest, AMissingNcclEndsTheProcessBeforeTheModelIsRead) {
  settings_.model_path = "/nowhere";
  Pod pod(Settings(2, 2, 0), "/nonexistent/libnccl.so.2");
  EXPECT_EQ(pod.Join(), kExitDevice);
}

}  // namespace
}  // namespace rempart::worker
