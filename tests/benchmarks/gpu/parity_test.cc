// SPDX-License-Identifier: Apache-2.0
// Parity over the emulated device: nothing is wrong with it, and one that computes badly is found.
#include "benchmarks/gpu/parity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <deque>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "tests/kernels/cuda/blas_fixture.h"
#include "tests/worker/model/tiny_gguf.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Leaves the last token out of one product in three.
class ForgetfulDevice : public worker::EmulatedDevice {
 public:
  ForgetfulDevice() : EmulatedDevice(kMemory) {}
  absl::Status Matmul(const kernels::DeviceMatmulArgs& args) override {
    kernels::DeviceMatmulArgs less = args;
    if (args.num_tokens > 1 && ++products_ % 3 == 0) --less.num_tokens;
    return EmulatedDevice::Matmul(less);
  }

 private:
  int products_ = 0;
};

// The exact shapes with as many layers and tokens as take a second, not minutes: every kind of
// layer is among them.
std::vector<NamedConfig> ShortenedExact() {
  std::vector<NamedConfig> decoders = {SmolLm2(), Gemma3()};
  decoders[0].config.layers.resize(2);
  decoders[1].config.layers.erase(decoders[1].config.layers.begin(),
                                  decoders[1].config.layers.begin() + 4);
  decoders[1].config.layers.resize(2);
  for (NamedConfig& named : decoders) named.config.vocabulary = 2048;
  return decoders;
}

TEST(CheckParity, FindsTheEmulatorToComputeWhatTheCpuDoes) {
  std::vector<NamedConfig> decoders = SmallDecoders();
  for (const NamedConfig& exact : ShortenedExact()) decoders.push_back(exact);
  worker::EmulatedDevice device(kMemory);
  const auto result = CheckParity(device, decoders);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  EXPECT_THAT(figures, SizeIs(10));
  for (const char* name : {"llama", "mistral", "qwen", "smollm2_135m", "gemma3_270m"}) {
    EXPECT_GT(figures[std::string(name) + "_same_tokens"], 80) << name;
    EXPECT_GT(figures[std::string(name) + "_worst_logits_error"], 0) << name;
    EXPECT_LT(figures[std::string(name) + "_worst_logits_error"], 2) << name;
  }
}

// Few tokens are multiplied by FP8 weights as they are, and an emulated GPU has no library for
// many.
TEST(CheckParity, HoldsTheCpusWeightsInFp8AndAnFp8CacheAgainstItsOwn) {
  worker::EmulatedDevice device(kMemory);
  const auto result = CheckParity(device, Fp8Decoders());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  EXPECT_GT(figures["llama_fp8_same_tokens"], 80);
  EXPECT_GT(figures["llama_fp8_worst_logits_error"], 0);
  EXPECT_LT(figures["llama_fp8_worst_logits_error"], 2) << "the weights are the same";
  EXPECT_GT(figures["llama_fp8_kv_same_tokens"], 60);
  EXPECT_GT(figures["llama_fp8_kv_worst_logits_error"], figures["llama_fp8_worst_logits_error"])
      << "the cache is in FP8";
}

// As on a GPU where cuBLASLt is found, which multiplies the prompt's activations in FP8.
TEST(CheckParity, AllowsWhatALibraryMakesOfActivations) {
  worker::EmulatedDevice device(kMemory);
  kernels::cuda::BlasRoom room;
  device.UseBlas(room.Products());
  const auto result = CheckParity(device, Fp8Decoders());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(device.library_products(), 0);
  EXPECT_THAT(result->wrong, IsEmpty());
  EXPECT_GT(ByName(*result)["llama_fp8_worst_logits_error"], 2) << "they are in FP8";
}

// Scales that are twice what they should be.
class MisscaledDevice : public worker::EmulatedDevice {
 public:
  MisscaledDevice() : EmulatedDevice(kMemory) {}
  absl::Status Matmul(const kernels::DeviceMatmulArgs& args) override {
    if (args.w.format != kernels::DeviceFormat::kFP8Row) return EmulatedDevice::Matmul(args);
    std::vector<float>& scales = scales_.emplace_back(args.w.scales, args.w.scales + args.w.rows);
    for (size_t row = 0; row < scales.size(); row += 3) scales[row] *= 2;
    kernels::DeviceMatmulArgs other = args;
    other.w.scales = scales.data();
    return EmulatedDevice::Matmul(other);
  }

 private:
  std::deque<std::vector<float>> scales_;  // graphs hold them
};

TEST(CheckParity, WrongScalesOfFp8AreFound) {
  MisscaledDevice device;
  const auto result = CheckParity(device, Fp8Decoders());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, Contains(HasSubstr("llama_fp8, token 0: logits differ by ")));
}

TEST(CheckParity, SaysWhatIsWrongAndWhere) {
  ForgetfulDevice device;
  const auto result = CheckParity(device, SmallDecoders());
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_FALSE(result->wrong.empty());
  EXPECT_THAT(result->wrong[0], HasSubstr("llama, token "));
}

TEST(CheckFileParity, TakesTheWeightsOfAFile) {
  const std::string path = absl::StrCat("/tmp/rempart_parity_", getpid(), ".gguf");
  std::ofstream(path, std::ios::binary) << worker::TinyGguf()[0];
  worker::EmulatedDevice device(kMemory);
  const auto result = CheckFileParity(device, path);
  std::filesystem::remove(path);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  const std::string name = absl::StrCat("rempart_parity_", getpid());
  EXPECT_GT(figures[name + "_same_tokens"], 80);
  EXPECT_GT(figures[name + "_worst_logits_error"], 0);
  EXPECT_LT(figures[name + "_worst_logits_error"], 2);
}

TEST(CheckFileParity, HasNotRunOnWhatItCannotRead) {
  worker::EmulatedDevice device(kMemory);
  for (const char* path : {"/nowhere/model.gguf", "README.md"}) {
    const auto result = CheckFileParity(device, path);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(path));
  }
}

TEST(Agreement, ATokenMayDifferWhereTwoLieAsCloseAsRoundingAndNowhereElse) {
  Agreement agreement("model", 3);
  agreement.TakeToken(1, {1.0f, 2.0f, 1.95f});
  agreement.TakeToken(2, {1.0f, 2.0f, 1.95f});
  PartResult result;
  agreement.Report(result);
  EXPECT_THAT(result.wrong, IsEmpty());
  EXPECT_EQ(ByName(result)["model_same_tokens"], 50);
  agreement.TakeToken(0, {1.0f, 2.0f, 1.95f});
  agreement.TakeToken(3, {1.0f, 2.0f, 1.95f});
  agreement.TakeToken(-1, {1.0f, 2.0f, 1.95f});
  result = {};
  agreement.Report(result);
  EXPECT_THAT(result.wrong,
              ElementsAre("model, token 2: 0 instead of 1, no tie", "model, token 3: 3 is no token",
                          "model, token 4: -1 is no token"));
}

TEST(Agreement, FiveTimesAsMuchIsAllowedOfFp8) {
  Agreement agreement("model", 3, Fp8Is::kInKv);
  agreement.TakeToken(2, {1.0f, 2.0f, 1.55f});
  agreement.Take({-1.0f, 1.0f + 0.09f * std::sqrt(2.0f)}, {-1.0f, 1.0f});
  PartResult result;
  agreement.Report(result);
  EXPECT_THAT(result.wrong, IsEmpty());
  agreement.TakeToken(2, {1.0f, 2.0f, 1.45f});
  agreement.Take({-1.0f, 1.0f + 0.11f * std::sqrt(2.0f)}, {-1.0f, 1.0f});
  result = {};
  agreement.Report(result);
  EXPECT_THAT(result.wrong, SizeIs(2));
}

TEST(Agreement, LogitsMayDifferByWhatTheirLayersRound) {
  for (const size_t layers : {3u, 27u}) {
    const float most = layers == 3 ? 0.02f : 0.06f;
    for (const float part : {0.9f, 1.1f}) {
      Agreement agreement("model", layers);
      agreement.Take({-1.0f, 1.0f + most * part * std::sqrt(2.0f)}, {-1.0f, 1.0f});
      PartResult result;
      agreement.Report(result);
      EXPECT_THAT(result.wrong, SizeIs(part < 1 ? 0 : 1)) << layers;
    }
  }
  Agreement agreement("model", 3);
  agreement.Take({NAN, 1.0f}, {-1.0f, 1.0f});
  PartResult result;
  agreement.Report(result);
  EXPECT_THAT(result.wrong, Contains(HasSubstr("logits differ by inf %")));
}

}  // namespace
}  // namespace rempart::benchmarks
