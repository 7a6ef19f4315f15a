// SPDX-License-Identifier: Apache-2.0
// Requests get the same whether the ranks of a group on GPUs begin steps ahead or wait for each:
// from the model's file through the engine, the group and its links to emulated devices that have
// done nothing until they are waited for.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/worker/api/short_traffic.h"
#include "tests/worker/api/tiny_tokenizer.h"
#include "worker/api/load_model.h"
#include "worker/comm/host_collectives.h"
#include "worker/comm/in_process.h"
#include "worker/comm/nccl_library.h"
#include "worker/comm/one_shot.h"
#include "worker/device/emulated_device.h"
#include "worker/engine/engine.h"
#include "worker/group/device_links.h"
#include "worker/group/group_runner.h"

namespace rempart::worker {
namespace {

namespace fs = std::filesystem;

constexpr int kTensor = 2;

enum class Sums { kByTheHost, kInOneShot, kByNccl };

std::unique_ptr<CollectiveLibrary> MakeLibrary(Sums sums) {
  if (sums == Sums::kByTheHost) return std::make_unique<HostCollectives>();
  if (sums == Sums::kByNccl) {
    auto nccl = Nccl::Load(REMPART_FAKE_NCCL);
    EXPECT_TRUE(nccl.ok()) << nccl.status();
    return nccl.ok() ? *std::move(nccl) : nullptr;
  }
  OneShotOptions options;
  options.use = OneShotUse::kAlways;
  options.measure_time = std::chrono::milliseconds(0);
  return std::make_unique<OneShot>(std::make_unique<HostCollectives>(), options);
}

// Of a small model, in a folder.
class TwoGpus {
 public:
  explicit TwoGpus(Sums sums) : root_(absl::StrCat("/tmp/rempart_group_ahead_", getpid(), "/")) {
    fs::remove_all(root_);
    fs::create_directories(root_);
    for (const char* file : {"config.json", "model.safetensors"}) {
      fs::copy(absl::StrCat("tests/goldens/families/llama3/", file), root_);
    }
    std::ofstream(root_ + "tokenizer.json") << kTokenizer;
    WorkerSettings settings;
    settings.model_path = root_;
    settings.device = DeviceKind::kGpu;
    settings.tensor_parallel = settings.ranks_per_pod = kTensor;
    settings.engine.threads = 1;
    settings.engine.max_sequences = 4;
    settings.engine.max_step_tokens = 8;
    settings.engine.context_length = 96;
    settings.engine.kv_cache_bytes = 1 << 20;
    const GpuOpener open = [this](int) -> absl::StatusOr<std::unique_ptr<Device>> {
      auto device = std::make_unique<EmulatedDevice>(int64_t{3} << 30);
      devices_.push_back(device.get());
      return device;
    };
    auto loaded = LoadModelFile(
        settings, open, [sums] { return MakeLibrary(sums); }, status_);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (loaded.ok()) model_.emplace(*std::move(loaded));
  }
  ~TwoGpus() { fs::remove_all(root_); }

  bool ok() const { return model_.has_value(); }
  LoadedModel& model() { return *model_; }
  // From now on the devices work when they are waited for.
  void Defer() {
    for (EmulatedDevice* device : devices_) device->Defer();
  }

 private:
  const std::string root_;
  WorkerStatus status_;
  std::vector<EmulatedDevice*> devices_;
  std::optional<LoadedModel> model_;
};

// One epoch of both ranks.
class Epoch {
 public:
  explicit Epoch(LoadedModel& model) : communicators_(CreateInProcess(kTensor, {})) {
    for (int rank = 0; rank < kTensor; ++rank) {
      RankModel* const made = model.ranks[rank].get();
      EXPECT_TRUE(made->Begin(communicators_[rank].get(), model.engine.blocks_total).ok());
      locals_.push_back({rank, made, communicators_[rank].get(), &progress_[rank]});
    }
    auto links = LinkDevices(*model.collectives, kTensor, locals_, {}, {});
    EXPECT_TRUE(links.ok()) << links.status();
    if (links.ok()) links_ = *std::move(links);
    threads_.emplace(std::vector<LocalRank>(locals_.begin() + 1, locals_.end()),
                     [this](int32_t, const absl::Status& status) {
                       fate.End(std::string(status.message()), -1);
                     });
    GroupRunner::Options options;
    options.first = locals_[0];
    options.others = &*threads_;
    options.fate = &fate;
    runner.emplace(std::move(options));
  }
  // Whatever runs.
  ~Epoch() {
    for (const auto& communicator : communicators_) {
      communicator->Abort(absl::CancelledError("the epoch is over"), -1);
    }
    for (const DeviceLink& link : links_) {
      link.communicator->Abort(absl::CancelledError("the epoch is over"));
    }
    threads_.reset();
    for (const LocalRank& local : locals_) local.model->SetDeviceCommunicator(nullptr);
  }

  EpochFate fate;
  std::optional<GroupRunner> runner;

 private:
  std::vector<std::unique_ptr<Communicator>> communicators_;
  RankProgress progress_[kTensor];
  std::vector<LocalRank> locals_;
  std::vector<DeviceLink> links_;
  std::optional<RankThreads> threads_;
};

// Without its pipeline.
class OneByOne : public ModelRunner {
 public:
  explicit OneByOne(GroupRunner& group) : group_(group) {}
  int32_t vocabulary_size() const override { return group_.vocabulary_size(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override {
    return group_.Forward(batch, logits, drawn);
  }

 private:
  GroupRunner& group_;
};

// With it; counts the steps that are begun ahead.
class Ahead : public ModelRunner, private StepPipeline {
 public:
  explicit Ahead(GroupRunner& group) : group_(group) {}
  int32_t vocabulary_size() const override { return group_.vocabulary_size(); }
  absl::Status Forward(const StepBatch&, absl::Span<float>, absl::Span<DrawnToken>) override {
    return absl::UnimplementedError("it has a pipeline");
  }
  StepPipeline* pipeline() override { return group_.pipeline() == nullptr ? nullptr : this; }
  int steps = 0, ahead = 0, running = 0;

 private:
  absl::StatusOr<bool> Start(const StepBatch& batch) override {
    absl::StatusOr<bool> started = group_.pipeline()->Start(batch);
    if (!started.ok()) return started;
    ++steps;
    ahead += running++ > 0 ? 1 : 0;
    return started;
  }
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) override {
    --running;
    return group_.pipeline()->Finish(logits, drawn);
  }

  GroupRunner& group_;
};

class GroupAhead : public testing::TestWithParam<Sums> {
 protected:
  // More than one of `share` steps is begun ahead.
  static void ExpectTheSameAhead(bool constrained, int share) {
    TwoGpus gpus(GetParam());
    ASSERT_TRUE(gpus.ok());
    Epoch epoch(gpus.model());
    std::set<uint64_t> cancelled;
    OneByOne one_by_one(*epoch.runner);
    const Answers expected = ServeShort(gpus.model(), one_by_one, cancelled, constrained);
    gpus.Defer();
    Ahead ahead(*epoch.runner);
    ASSERT_NE(ahead.pipeline(), nullptr);
    ExpectTheSame(expected, ServeShort(gpus.model(), ahead, cancelled, constrained), cancelled);
    EXPECT_GT(ahead.ahead, ahead.steps / share);
    EXPECT_EQ(ahead.running, 0);
    EXPECT_FALSE(epoch.fate.end().has_value());
  }
};

TEST_P(GroupAhead, GivesTheSame) { ExpectTheSameAhead(/*constrained=*/false, 2); }

// The first rank has the masks. Who is constrained waits for its token, the others go on.
TEST_P(GroupAhead, GivesTheSameToConstrainedRequests) {
  ExpectTheSameAhead(/*constrained=*/true, 4);
}

INSTANTIATE_TEST_SUITE_P(All, GroupAhead,
                         testing::Values(Sums::kByTheHost, Sums::kInOneShot, Sums::kByNccl));

// The first epoch ends while two steps run, and what is left of them is nobody's.
TEST(GroupAheadTest, AnEpochThatEndsAmongStepsLeavesNothingToTheNext) {
  TwoGpus gpus(Sums::kInOneShot);
  ASSERT_TRUE(gpus.ok());
  std::set<uint64_t> cancelled;
  Answers expected;
  {
    Epoch epoch(gpus.model());
    Ahead ahead(*epoch.runner);
    expected = ServeShort(gpus.model(), ahead, cancelled);
    gpus.Defer();
    const std::vector<int32_t> ids = {3}, table = {0};
    StepBatch batch;
    const SamplingParams params;
    const SliceSampling sampling = {&params, {}, 0};
    batch.slices = {{ids, 0, table, true, &sampling}};
    ASSERT_TRUE(epoch.runner->pipeline()->Start(batch).ok());
    batch.slices[0].follows = 0;
    batch.slices[0].first_position = 1;
    ASSERT_TRUE(epoch.runner->pipeline()->Start(batch).ok());
  }
  Epoch epoch(gpus.model());
  Ahead ahead(*epoch.runner);
  ExpectTheSame(expected, ServeShort(gpus.model(), ahead, cancelled), cancelled);
}

}  // namespace
}  // namespace rempart::worker
