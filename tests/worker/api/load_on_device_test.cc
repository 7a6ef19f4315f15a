// SPDX-License-Identifier: Apache-2.0
// Serving with device gpu, from the file to the engine's tokens, over the emulated device: what the
// CPU answers, and what is refused.
#include "worker/api/load_on_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/worker/api/short_traffic.h"
#include "tests/worker/api/tiny_tokenizer.h"
#include "tests/worker/engine/random_traffic.h"
#include "worker/api/load_model.h"
#include "worker/api/source_check.h"
#include "worker/comm/host_collectives.h"
#include "worker/device/emulated_device.h"
#include "worker/engine/engine.h"

namespace rempart::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kMiB = 1 << 20;
constexpr int kTokens = 8;  // of each answer
constexpr char kFamilies[] = "tests/goldens/families/";

// What BF16 may change of a log-probability of these models.
constexpr float kRounding = 0.1f;

using Answer = std::vector<SampledLogprob>;  // token by token

// -100 for one that is not among the best.
float LogprobOf(const SampledLogprob& sampled, int32_t token_id) {
  for (const TokenLogprob& top : sampled.top) {
    if (top.token_id == token_id) return top.logprob;
  }
  return -100.0f;
}

// Breaks when told to, as a GPU that has fallen off its bus: for good.
class FragileDevice : public EmulatedDevice {
 public:
  FragileDevice(int64_t memory_bytes, std::atomic<int64_t>* taken)
      : EmulatedDevice(memory_bytes), taken_(taken) {}
  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    *taken_ += bytes;
    return EmulatedDevice::Allocate(bytes);
  }
  absl::Status Check() override {
    return broken ? absl::InternalError("unspecified launch failure") : absl::OkStatus();
  }
  absl::Status Finish() override {
    EmulatedDevice::Finish().IgnoreError();
    return Check();
  }
  absl::Status Await(int place) override {
    EmulatedDevice::Await(place).IgnoreError();
    return Check();
  }
  absl::StatusOr<std::unique_ptr<DeviceGraph>> Record(
      absl::FunctionRef<absl::Status()> record) override {
    if (is_alone) return DeviceUnavailable("it cannot record what its peers do");
    return EmulatedDevice::Record(record);
  }
  bool broken = false;
  bool is_alone = false;

 private:
  std::atomic<int64_t>* const taken_;  // of all devices of the test
};

class LoadOnDeviceTest : public testing::Test {
 protected:
  LoadOnDeviceTest() {
    static int next = 0;
    root_ = absl::StrCat("/tmp/rempart_on_device_", getpid(), "_", ++next, "/");
    settings_.model_path = root_;
    settings_.engine.threads = 1;
    settings_.engine.max_sequences = 4;
    settings_.engine.max_step_tokens = 16;
    settings_.engine.context_length = 96;
    settings_.engine.exact_arithmetic = true;  // on CPU
    settings_.engine.kv_cache_type = "f32";
    UseFamily("llama3");
  }
  ~LoadOnDeviceTest() override { fs::remove_all(root_); }

  void UseFamily(const std::string& name) {
    fs::remove_all(root_);
    fs::create_directories(root_);
    fs::copy(kFamilies + name + "/config.json", root_);
    fs::copy(kFamilies + name + "/model.safetensors", root_);
    std::ofstream(root_ + "tokenizer.json") << kTokenizer;
  }

  absl::StatusOr<LoadedModel> LoadOnCpu() {
    return LoadModelFile(
        settings_, [](int) { return absl::InternalError("no GPU was asked for"); }, nullptr,
        status_);
  }
  absl::StatusOr<LoadedModel> LoadOnGpu(int64_t memory_bytes = int64_t{2} << 30) {
    WorkerSettings settings = settings_;
    settings.device = DeviceKind::kGpu;
    settings.engine.exact_arithmetic = false;
    settings.engine.kv_cache_type = kv_cache_type_;
    settings.engine.kv_cache_bytes = kv_cache_bytes_;
    const GpuOpener open = [&](int index) -> absl::StatusOr<std::unique_ptr<Device>> {
      opened_.push_back(index);
      auto device = std::make_unique<FragileDevice>(memory_bytes, &taken_);
      device_ = device.get();
      return device;
    };
    const CollectiveLoader load = [&]() -> absl::StatusOr<std::unique_ptr<CollectiveLibrary>> {
      if (!collectives_.ok()) return collectives_;
      return std::make_unique<HostCollectives>();
    };
    return LoadModelFile(settings, open, load, status_);
  }

  // Greedy answers, by request, to three that overlap: one is longer than a step, one of one token.
  std::map<uint64_t, Answer> Serve(LoadedModel& model) {
    std::map<uint64_t, Answer> answers;
    EXPECT_TRUE(model.ranks[0]->Begin(nullptr, model.engine.blocks_total).ok());
    ManualClock clock;
    const auto collect = [&](const StepResult& result) {
      for (const SequenceDelta& delta : result.deltas) {
        EXPECT_FALSE(delta.failure.has_value());
        Answer& answer = answers[delta.request_id];
        answer.insert(answer.end(), delta.logprobs.begin(), delta.logprobs.end());
      }
    };
    Engine engine(model.engine, model.ranks[0].get(), model.vocabulary.get(), &clock, collect);
    for (uint64_t id = 1; id <= 3; ++id) {
      SequenceRequest request;
      request.request_id = id;
      const int lengths[] = {26, 1, 9};
      for (int i = 0; i < lengths[id - 1]; ++i) {
        request.prompt_ids.push_back(static_cast<int32_t>((id * 91 + i * 37) % 320));
      }
      request.max_tokens = kTokens;
      request.sampling.temperature = 0;
      request.sampling.ignore_eos = true;
      request.sampling.top_logprobs = 20;
      engine.Submit(std::move(request));
      engine.Step();
    }
    while (engine.Step()) {
    }
    return answers;
  }
  std::vector<std::string> Parts() const {
    std::vector<std::string> names;
    for (const StartPart& part : status_.snapshot().start_parts) names.push_back(part.name);
    return names;
  }

  std::string root_;
  WorkerSettings settings_;
  std::string kv_cache_type_ = "auto";
  int64_t kv_cache_bytes_ = kMiB;
  absl::Status collectives_;  // what loading them says
  WorkerStatus status_;
  std::vector<int> opened_;
  std::atomic<int64_t> taken_ = 0;   // bytes, of all devices
  FragileDevice* device_ = nullptr;  // of the last load
};

// A rank whose tokens all are drawn on the host.
class UndrawnRank : public ModelRunner {
 public:
  explicit UndrawnRank(RankModel* rank) : rank_(rank) {}
  int32_t vocabulary_size() const override { return rank_->vocabulary_size(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken>) override {
    return rank_->Forward(batch, logits, {});
  }

 private:
  RankModel* const rank_;
};

// How many tokens a rank has drawn.
class DrawnRank : public ModelRunner {
 public:
  explicit DrawnRank(RankModel* rank) : rank_(rank) {}
  int32_t vocabulary_size() const override { return rank_->vocabulary_size(); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override {
    const absl::Status status = rank_->Forward(batch, logits, drawn);
    for (const DrawnToken& each : drawn) ++(each.is_drawn ? drawn_count : left_count);
    return status;
  }
  int drawn_count = 0, left_count = 0;

 private:
  RankModel* const rank_;
};

class LoadOnDeviceFamilies : public LoadOnDeviceTest,
                             public testing::WithParamInterface<const char*> {};

// The CPU computes in F32 here, the GPU with BF16 activations, and random weights make flat logits:
// a token may differ where the CPU's own two best are as close as that rounding. Then the answers
// part.
TEST_P(LoadOnDeviceFamilies, ServesTheTokensOfTheCpu) {
  UseFamily(GetParam());
  auto cpu = LoadOnCpu();
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  auto gpu = LoadOnGpu();
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  const std::map<uint64_t, Answer> expected = Serve(*cpu);
  std::map<uint64_t, Answer> actual = Serve(*gpu);
  ASSERT_EQ(expected.size(), 3u);
  int equal = 0;
  for (const auto& [id, answer] : expected) {
    ASSERT_EQ(answer.size(), static_cast<size_t>(kTokens));
    ASSERT_EQ(actual[id].size(), static_cast<size_t>(kTokens));
    for (int i = 0; i < kTokens; ++i) {
      const TokenLogprob best = answer[i].chosen;
      const TokenLogprob got = actual[id][i].chosen;
      EXPECT_NEAR(got.logprob, best.logprob, kRounding) << "request " << id << ", token " << i;
      if (got.token_id != best.token_id) {
        EXPECT_LT(best.logprob - LogprobOf(answer[i], got.token_id), kRounding)
            << "request " << id << ", token " << i;
        break;
      }
      ++equal;
    }
  }
  EXPECT_GE(equal, 2 * kTokens);
  EXPECT_GT(device_->graphs(), 0) << "decodes run as graphs";
}

INSTANTIATE_TEST_SUITE_P(All, LoadOnDeviceFamilies,
                         testing::Values("gemma3", "llama3", "llama_fp8_channel", "llama_gptq",
                                         "phi3", "phi3_int8", "qwen2", "qwen2_awq",
                                         "qwen3_fp8_block"),
                         [](const auto& info) { return std::string(info.param); });

// The same steps, bit for bit, whoever draws: requests of every kind that come, are cancelled, and
// push each other out of a small cache; then half of them with constraints.
TEST_F(LoadOnDeviceTest, RequestsGetTheSameWhetherTheDeviceOrTheHostDraws) {
  auto gpu = LoadOnGpu();
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  ASSERT_TRUE(gpu->ranks[0]->Begin(nullptr, gpu->engine.blocks_total).ok());
  EngineOptions options = gpu->engine;
  options.context_length = 48;
  options.blocks_total = 4;
  uint64_t preemptions = 0;
  bool is_constrained = false;
  const auto serve = [&](ModelRunner* model, uint64_t seed) {
    Draw draw(seed);
    ManualClock clock;
    Answers answers;
    Engine engine(options, model, gpu->vocabulary.get(), &clock,
                  [&](const StepResult& result) { Collect(result, answers); });
    for (uint64_t id = 1; id <= 7; ++id) {
      SequenceRequest request = RandomRequest(draw, id, {320, 48});
      const TestRules rules = {.vocabulary = 320, .one_in = 40};
      if (is_constrained && id % 2 == 0) {
        request.constraint = std::make_shared<TestConstraint>(rules, id);
      }
      request.max_tokens = std::min(request.max_tokens, 10);
      request.n = std::min(request.n, 2);
      if (draw.OneIn(3)) request.sampling.logit_bias = {{5, 2.0f}, {300, -4.0f}};
      engine.Submit(std::move(request));
      if (draw.OneIn(5)) engine.Cancel(static_cast<uint64_t>(draw(1, static_cast<int>(id))));
      for (int steps = draw(0, 6); steps > 0; --steps) engine.Step();
    }
    while (engine.Step()) {
    }
    preemptions += engine.load().preemptions;
    return answers;
  };
  for (const bool constrained : {false, true}) {
    is_constrained = constrained;
    preemptions = 0;
    UndrawnRank by_host(gpu->ranks[0].get());
    DrawnRank by_device(gpu->ranks[0].get());
    const Answers expected = serve(&by_host, 6), actual = serve(&by_device, 6);
    ASSERT_EQ(expected.size(), actual.size());
    for (const auto& [key, received] : expected) {
      EXPECT_TRUE(received == actual.at(key)) << "request " << key.first << "." << key.second;
    }
    EXPECT_GT(by_device.drawn_count, 20);
    EXPECT_GT(by_device.left_count, 5) << "alternatives and forks";
    EXPECT_GT(preemptions, 0u);
  }
}

// The device has done nothing yet when the host goes on.
TEST_F(LoadOnDeviceTest, StepsBegunAheadGiveTheSame) {
  UseFamily("gemma3");
  settings_.engine.max_step_tokens = 8;
  auto gpu = LoadOnGpu();
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  ASSERT_TRUE(gpu->ranks[0]->Begin(nullptr, gpu->engine.blocks_total).ok());
  device_->Defer();
  std::set<uint64_t> cancelled;
  DrawnRank one_by_one(gpu->ranks[0].get());
  for (const bool constrained : {false, true}) {
    const Answers expected = ServeShort(*gpu, one_by_one, cancelled, constrained);
    ExpectTheSame(expected, ServeShort(*gpu, *gpu->ranks[0], cancelled, constrained), cancelled);
    cancelled.clear();
  }
}

TEST_F(LoadOnDeviceTest, SaysWhatItRunsOnAndWhatTheStartWasMadeOf) {
  settings_.first_gpu = 5;
  const auto model = LoadOnGpu();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(opened_, ElementsAre(5));
  EXPECT_EQ(model->kernel_tier, "cuda-emulated");
  for (const char* part : {"device", "open", "tokenizer", "bind", "read", "copy", "upload"}) {
    EXPECT_THAT(Parts(), Contains(part));
  }
  EXPECT_THAT(Parts(), Not(Contains("hash"))) << "no digest is wanted before it serves";
  EXPECT_THAT(Parts(), Not(Contains("repack"))) << "the CPU's copies would never be read";
  const StatusSnapshot loaded = status_.snapshot();
  EXPECT_GT(loaded.bytes_done, 600'000) << "of a file of 660 KB";
  EXPECT_EQ(loaded.bytes_done, loaded.bytes_total);
  EXPECT_TRUE(model->check_later({}).ok());
  EXPECT_THAT(status_.snapshot().digest, HasSubstr("sha256:"));
  // 3 layers of 2 KV heads of 16 elements: K and V of 16 tokens in BF16 are 6 KiB.
  EXPECT_EQ(model->engine.blocks_total, kv_cache_bytes_ / (6 * 1024));
}

// By the first rank alone, which reads the others' shares for it as well.
TEST_F(LoadOnDeviceTest, AWantedDigestIsThatOfTheBytesThatPassed) {
  const auto digest = HashModel(root_, {}, nullptr);
  ASSERT_TRUE(digest.ok());
  for (const int ranks : {1, 2}) {
    settings_.tensor_parallel = settings_.ranks_per_pod = ranks;
    settings_.model_digest = DigestText(*digest);
    const auto model = LoadOnGpu(int64_t{3} << 30);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_THAT(Parts(), Contains("hash"));
    EXPECT_EQ(status_.snapshot().digest, settings_.model_digest);
    settings_.model_digest[10] = settings_.model_digest[10] == '0' ? '1' : '0';
    const auto other = LoadOnGpu(int64_t{3} << 30);
    EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(other.status().message()),
                HasSubstr(absl::StrCat("has the digest ", DigestText(*digest))));
  }
}

TEST_F(LoadOnDeviceTest, AWrongFileIsSaidToBeSoWhateverElseIsWrong) {
  settings_.model_digest = absl::StrCat("sha256:", std::string(64, '0'));
  kv_cache_bytes_ = 0;
  const auto refused = LoadOnGpu(int64_t{1} << 30);  // nothing fits
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("has the digest sha256:"));
}

TEST_F(LoadOnDeviceTest, AnFp8CacheHoldsTwiceAsMuch) {
  kv_cache_type_ = "fp8";
  auto model = LoadOnGpu();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->engine.blocks_total, kv_cache_bytes_ / (3 * 1024));
  EXPECT_EQ(Serve(*model).size(), 3u);
}

TEST_F(LoadOnDeviceTest, AMissingGpuIsSaidBeforeAnythingIsRead) {
  settings_.device = DeviceKind::kGpu;
  settings_.model_path = "/nowhere.gguf";
  const auto refused = LoadModelFile(
      settings_, [](int) { return DeviceUnavailable("no driver"); }, nullptr, status_);
  EXPECT_TRUE(IsDeviceUnavailable(refused.status())) << refused.status();
}

TEST_F(LoadOnDeviceTest, WhatDoesNotFitIsRefusedWithTheNumbers) {
  kv_cache_bytes_ = 0;
  const auto refused = LoadOnGpu(int64_t{1} << 30);  // all of it is held in reserve
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string message(refused.status().message());
  EXPECT_THAT(message, HasSubstr("the GPU has 1024 MiB free, and needs 1 for weights, "));
  EXPECT_THAT(message, HasSubstr(" for workspaces, 1024 in reserve and 1 for the KV cache of one "
                                 "sequence of 96 tokens"));
  EXPECT_THAT(message, HasSubstr("lower engine.contextLength"));
  EXPECT_EQ(taken_, 0) << "before any is taken";
  const DeviceMemoryNeeds told = status_.snapshot().rank_memory;
  EXPECT_EQ(told.reserve_bytes, int64_t{1} << 30);
  EXPECT_GT(told.weights_bytes, 300'000);
  EXPECT_LE(told.weights_bytes, kMiB);
  EXPECT_GT(told.workspace_bytes, 0);
  // 96 tokens are 6 blocks of 6 KiB.
  EXPECT_EQ(told.kv_bytes, 6 * 6 * 1024);
}

// Half of it each, and a gigabyte more in reserve.
TEST_F(LoadOnDeviceTest, RanksOfAPodHaveAGpuEachAndARoomForWhatLinksThem) {
  const auto alone = LoadOnGpu();
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->collectives, nullptr);
  const int64_t taken_alone = taken_.exchange(0);
  opened_.clear();
  settings_.tensor_parallel = settings_.ranks_per_pod = 2;
  const auto pair = LoadOnGpu(int64_t{3} << 30);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_THAT(opened_, ElementsAre(0, 1));
  ASSERT_EQ(pair->ranks.size(), 2u);
  EXPECT_NE(pair->collectives, nullptr);
  // The KV cache has the same bytes on each, for one head instead of two.
  EXPECT_EQ(alone->engine.blocks_total, kv_cache_bytes_ / (6 * 1024));
  EXPECT_EQ(pair->engine.blocks_total, kv_cache_bytes_ / (3 * 1024));
  EXPECT_LT(taken_, 2 * taken_alone);
  kv_cache_bytes_ = 0;
  const auto refused = LoadOnGpu(int64_t{2} << 30);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("2048 in reserve"));
}

TEST_F(LoadOnDeviceTest, WhatCannotLinkTheGpusIsSaidBeforeAnythingIsRead) {
  collectives_ = DeviceUnavailable("NCCL 2.20.0 is too old");
  settings_.tensor_parallel = settings_.ranks_per_pod = 2;
  settings_.model_path = "/nowhere.gguf";
  EXPECT_TRUE(IsDeviceUnavailable(LoadOnGpu().status()));
}

TEST_F(LoadOnDeviceTest, AModelThatAGpuCannotComputeIsRefused) {
  UseFamily("llama_bias");
  const auto refused = LoadOnGpu();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("use spec.device cpu"));
}

TEST_F(LoadOnDeviceTest, ARankTakesNoMoreBlocksThanItsGpuHas) {
  const auto model = LoadOnGpu();
  ASSERT_TRUE(model.ok()) << model.status();
  RankModel& rank = *model->ranks[0];
  EXPECT_TRUE(rank.Begin(nullptr, model->engine.blocks_total).ok());
  EXPECT_EQ(rank.Begin(nullptr, model->engine.blocks_total + 1).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(LoadOnDeviceTest, ABatchThatIsWrongFailsAndADeviceThatBreaksEndsTheProcess) {
  const auto model = LoadOnGpu();
  ASSERT_TRUE(model.ok()) << model.status();
  RankModel& rank = *model->ranks[0];
  std::vector<float> logits(rank.vocabulary_size());
  const std::vector<int32_t> ids = {3}, table = {0}, no_table = {-1};
  StepBatch batch;
  batch.slices.push_back({ids, 0, no_table, true});
  EXPECT_EQ(rank.Forward(batch, absl::MakeSpan(logits), {}).code(),
            absl::StatusCode::kInvalidArgument);
  batch.slices[0].block_table = table;
  EXPECT_TRUE(rank.Forward(batch, absl::MakeSpan(logits), {}).ok());
  EXPECT_EXIT(
      {
        device_->broken = true;
        (void)rank.Forward(batch, absl::MakeSpan(logits), {});
      },
      testing::ExitedWithCode(kExitRuntime), "unspecified launch failure");
  EXPECT_EXIT(
      {
        device_->is_alone = true;
        // The second of its size is recorded.
        for (int i = 0; i < 2; ++i) (void)rank.Forward(batch, absl::MakeSpan(logits), {});
      },
      testing::ExitedWithCode(kExitRuntime), "it cannot record what its peers do");
}

}  // namespace
}  // namespace rempart::worker
