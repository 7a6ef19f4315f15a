// SPDX-License-Identifier: Apache-2.0
// Load through the engine over the emulated device.
#include "benchmarks/gpu/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "benchmarks/gpu/bench.h"
#include "benchmarks/gpu/seeded_model.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A device that stops computing at its n-th product.
class BreakingDevice : public worker::EmulatedDevice {
 public:
  explicit BreakingDevice(int products) : EmulatedDevice(kMemory), left_(products) {}
  absl::Status Matmul(const kernels::DeviceMatmulArgs& args) override {
    if (--left_ < 0) return absl::InternalError("unspecified launch failure");
    return EmulatedDevice::Matmul(args);
  }

 private:
  int left_;
};

absl::StatusOr<PartResult> Measure(worker::Device& device, const LoadSizes& sizes) {
  const SeededModel seeded(SmallDecoders()[0].config, 3, LayerWeightsAre::kShared);
  const auto weights = seeded.Weights();
  if (!weights.ok()) return weights.status();
  const auto model =
      worker::DeviceTransformer::Create(device, seeded.config(), *weights, SmallOptions());
  if (!model.ok()) return model.status();
  return MeasureLoad(**model, SmallOptions(), sizes);
}

TEST(MeasureLoad, GivesTheRateOfASteadyLoad) {
  worker::EmulatedDevice device(kMemory);
  LoadSizes sizes;
  sizes.cases = {{8, 8, 1000}, {24, 4, 500}};
  sizes.ramp = absl::Seconds(60);
  sizes.window = absl::Seconds(1);
  const auto result = Measure(device, sizes);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  // Under which limits.
  EXPECT_EQ(figures["max_step_tokens"], 32);
  EXPECT_EQ(figures["max_step_time"], 100);
  EXPECT_EQ(figures["max_sequences"], 4);
  EXPECT_EQ(figures["context_length"], 64);
  for (const LoadCase& load : sizes.cases) {
    const std::string name =
        "load_" + std::to_string(load.prompt_tokens) + "_" + std::to_string(load.new_tokens) + "_";
    EXPECT_GT(figures[name + "tokens_per_s"], 0) << name;
    EXPECT_NEAR(figures[name + "of_tensorrt_llm"],
                100 * figures[name + "tokens_per_s"] / load.published, 1e-6);
    EXPECT_EQ(figures[name + "sequences"], 4) << name;
    EXPECT_GT(figures[name + "step"], 0) << name;
    EXPECT_GT(figures[name + "in_model"], 10) << name;
    EXPECT_LE(figures[name + "in_model"], 100.001) << name;
    EXPECT_GT(figures[name + "begun_ahead"], 80) << name;
    EXPECT_LE(figures[name + "begun_ahead"], 100) << name;
    EXPECT_GE(figures[name + "host_gap"], 0) << name;
  }
}

TEST(MeasureLoad, ADeviceThatBreaksEndsIt) {
  BreakingDevice device(40);
  LoadSizes sizes;
  sizes.cases = {{8, 8, 1000}};
  const auto result = Measure(device, sizes);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("unspecified launch failure"));
}

TEST(MeasureLoad, NothingGeneratedIsWrong) {
  worker::EmulatedDevice device(kMemory);
  LoadSizes sizes;
  sizes.cases = {{8, 8, 1000}};
  sizes.ramp = sizes.window = absl::ZeroDuration();
  const auto result = Measure(device, sizes);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, testing::ElementsAre("load_8_8: no token was generated"));
}

TEST(SequencesAtOnce, AreThoseThatFit) {
  EXPECT_EQ(SequencesAtOnce({128, 128, 1}, 512, 100000), 512);
  EXPECT_EQ(SequencesAtOnce({1000, 1000, 1}, 512, 12500), 100);
  EXPECT_EQ(SequencesAtOnce({1000, 1000, 1}, 512, 1), 1);
}

// What a Model runs that names a context and a number of sequences.
TEST(WorkersOptions, AreThoseOfAWorkerWithItsDefaults) {
  const BenchWork work;
  EXPECT_EQ(work.load_options.max_sequences, 512);
  EXPECT_EQ(work.load_options.max_step_tokens,
            worker::DefaultStepTokens(worker::DeviceKind::kGpu, 512));
  EXPECT_EQ(work.speed_options.max_step_tokens,
            worker::DefaultStepTokens(worker::DeviceKind::kGpu, 256));
  EXPECT_GE(work.speed_options.max_step_tokens, work.speed.prefill_tokens) << "in one step";
}

TEST(PublishedLoads, AreThoseOfTensorRt) {
  const std::vector<LoadCase> loads = PublishedLoads();
  ASSERT_EQ(loads.size(), 3u);
  EXPECT_EQ(loads[0].published, 27911);
  EXPECT_EQ(loads[1].published, 17744);
  EXPECT_EQ(loads[2].published, 3538);
}

}  // namespace
}  // namespace rempart::benchmarks
