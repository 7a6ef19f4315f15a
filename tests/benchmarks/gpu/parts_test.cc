// SPDX-License-Identifier: Apache-2.0
// The parts over the emulated device: they find nothing wrong with it, find what is wrong with one
// that computes badly, and their figures are those of the arithmetic.
#include "benchmarks/gpu/parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "benchmarks/gpu/products.h"
#include "benchmarks/gpu/seeded_model.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(MeasureSpeed, GivesTheFiguresOfAModel) {
  const worker::ModelConfig config = SmallDecoders()[0].config;
  const auto ready = GetReady([] { return std::make_unique<worker::EmulatedDevice>(kMemory); },
                              config, SmallOptions());
  ASSERT_TRUE(ready.ok()) << ready.status();
  EXPECT_THAT(ready->times.wrong, IsEmpty());
  auto times = ByName(ready->times);
  EXPECT_GT(times["first_token"], 0);
  EXPECT_NEAR(times["ready"], times["open"] + times["copy_weights"] + times["first_token"], 1e-9);
  EXPECT_NEAR(times["copied"], static_cast<double>(ready->model->plan().weights_bytes) / 1e9,
              1e-12);

  SpeedSizes sizes;
  sizes.batches = {1, 3, 4096};
  sizes.prompt_tokens = 16;
  sizes.decode_steps = 4;
  sizes.prefill_tokens = 32;
  sizes.prefill_repeats = 1;
  const auto result = MeasureSpeed(*ready->model, {1e12, 1e15, "paper", 1'980'000'000}, sizes);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  EXPECT_EQ(figures.count("decode_4096_tokens_per_s"), 0u) << "has no room";
  EXPECT_GT(figures["decode_3_tokens_per_s"], 0);
  EXPECT_EQ(figures.count("host_gap"), 1u);
  // Of each token: the weights without the embedding's half MiB, and 18 tokens of 3 layers' K and
  // V.
  const double bytes = static_cast<double>(ready->model->plan().weights_bytes - 1024 * 256 * 2) +
                       18.0 * 3 * 2 * 2 * 64 * 2;
  EXPECT_NEAR(figures["decode_1_read"], bytes * figures["decode_1_tokens_per_s"] / 1e9,
              1e-6 * figures["decode_1_read"]);
  EXPECT_NEAR(figures["decode_1_of_memory_bound"], figures["decode_1_read"] / 1000 * 100, 1e-6);
  // 3 layers of 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 704) * 32 and 2 * 32 * 32 * 256;
  // and one row of the head.
  const double flops =
      3.0 * (2.0 * 32 * (256 * 768 + 3 * 256 * 704) + 2.0 * 32 * 32 * 256) + 2.0 * 256 * 1024;
  EXPECT_NEAR(figures["prefill_32_computed"],
              flops * figures["prefill_32_tokens_per_s"] / 32 / 1e12,
              1e-6 * figures["prefill_32_computed"]);
  EXPECT_NEAR(figures["prefill_32_of_peak"], figures["prefill_32_computed"] / 1000 * 100, 1e-6);
  EXPECT_EQ(figures["peak"], 1000);
  EXPECT_EQ(figures["highest_clock"], 1980);
  EXPECT_THAT(result->figures.end()[-2].unit, HasSubstr("of paper"));
  // Without knowledge of the GPU there are no shares of what it could do.
  const auto unknown = MeasureSpeed(*ready->model, {}, sizes);
  ASSERT_TRUE(unknown.ok()) << unknown.status();
  EXPECT_EQ(ByName(*unknown).count("decode_1_of_memory_bound"), 0u);
  EXPECT_EQ(ByName(*unknown).count("prefill_32_of_peak"), 0u);
}

TEST(MeasureProducts, GivesTheSpeedOfEachFormat) {
  worker::EmulatedDevice device(kMemory);
  const ProductSizes sizes = {
      .shapes = {{"qkv", 128, 256}, {"down", 48, 640}}, .tokens = {9, 16}, .repeats = 2};
  const auto result = MeasureProducts(device, sizes);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  EXPECT_THAT(result->notes, testing::ElementsAre("emulated GPU"));
  auto figures = ByName(*result);
  EXPECT_EQ(figures.size(), 2u * 2 * 4);
  for (const char* const format : {"bf16", "fp8_rows", "fp8_blocks", "int8"}) {
    EXPECT_GT(figures[absl::StrCat("down_16_", format)], 0) << format;
    EXPECT_GT(figures[absl::StrCat("qkv_9_", format)], 0) << format;
  }
}

TEST(GetReady, PassesOnWhyThereIsNoDevice) {
  const auto ready = GetReady([] { return worker::DeviceUnavailable("no driver"); },
                              SmallDecoders()[0].config, SmallOptions());
  EXPECT_TRUE(worker::IsDeviceUnavailable(ready.status())) << ready.status();
}

worker::CudaDeviceInfo Card(const std::string& name, int major, int minor, int multiprocessors,
                            int64_t clock_hz) {
  worker::CudaDeviceInfo card;
  card.name = name;
  card.compute_major = major;
  card.compute_minor = minor;
  card.multiprocessors = multiprocessors;
  card.clock_hz = clock_hz;
  return card;
}

TEST(PeaksOf, AreThoseOfTheDataSheetWhateverTheHighestClock) {
  const struct {
    worker::CudaDeviceInfo card;
    double bf16, fp8;
    const char* sheet;
  } rows[] = {
      {Card("NVIDIA H200", 9, 0, 132, 1'980'000'000), 989, 1979, "H200"},
      {Card("NVIDIA H100 80GB HBM3", 9, 0, 132, 1'980'000'000), 989, 1979, "H100 80GB HBM3"},
      {Card("NVIDIA H200 NVL", 9, 0, 132, 1'785'000'000), 835, 1671, "H200 NVL"},
      {Card("NVIDIA A100-SXM4-80GB", 8, 0, 108, 1'410'000'000), 312, 312, "A100"},
      {Card("NVIDIA L40S", 8, 9, 142, 2'520'000'000), 362, 733, "L40S"},
      {Card("NVIDIA L4", 8, 9, 58, 2'040'000'000), 121, 242, "L4"},
      {Card("NVIDIA B200", 10, 0, 148, 1'965'000'000), 2250, 4500, "B200"}};
  for (const auto& row : rows) {
    const Peaks bf16 = PeaksOf(row.card, ProductType::kBF16);
    EXPECT_EQ(bf16.flops, row.bf16 * 1e12) << row.sheet;
    EXPECT_EQ(bf16.flops_are_of, std::string("the data sheet of the ") + row.sheet);
    EXPECT_EQ(bf16.clock_hz, row.card.clock_hz);
    EXPECT_EQ(PeaksOf(row.card, ProductType::kFP8).flops, row.fp8 * 1e12) << row.sheet;
  }
}

TEST(PeaksOf, AreOfTheClockWhereThereIsNoDataSheet) {
  const auto part = Card("NVIDIA H200 MIG 3g.71gb", 9, 0, 60, 1'980'000'000);
  EXPECT_NEAR(PeaksOf(part, ProductType::kBF16).flops, 4096.0 * 60 * 1.98e9, 1e6);
  EXPECT_NEAR(PeaksOf(part, ProductType::kFP8).flops, 2 * 4096.0 * 60 * 1.98e9, 1e6);
  EXPECT_THAT(PeaksOf(part, ProductType::kFP8).flops_are_of, HasSubstr("no data sheet"));
  const auto old = Card("NVIDIA A30", 8, 0, 56, 1'440'000'000);
  EXPECT_EQ(PeaksOf(old, ProductType::kFP8).flops, PeaksOf(old, ProductType::kBF16).flops)
      << "it computes FP8 weights in BF16";
  const auto unknown = Card("NVIDIA GeForce RTX 5090", 12, 0, 170, 2'400'000'000);
  EXPECT_EQ(PeaksOf(unknown, ProductType::kBF16).flops, 0);
}

// Its products end with an error; of one that is lost everything does from then on.
class BrokenDevice : public worker::EmulatedDevice {
 public:
  enum class Is { kUsable, kLost };
  explicit BrokenDevice(Is after) : EmulatedDevice(kMemory), after_(after) {}
  absl::Status Matmul(const kernels::DeviceMatmulArgs&) override {
    if (after_ == Is::kLost) lost_ = absl::InternalError("unspecified launch failure");
    return absl::UnavailableError("no way to multiply");
  }
  absl::Status Check() override { return lost_; }

 private:
  const Is after_;
  absl::Status lost_;
};

TEST(CheckConformance, AnOpThatErrsIsNamedAndTheOthersAreKept) {
  BrokenDevice device(BrokenDevice::Is::kUsable);
  const auto result = CheckConformance(device);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, ElementsAre("matmul: no way to multiply"));
  auto figures = ByName(*result);
  for (const Case& each : Cases()) {
    EXPECT_EQ(figures.count(each.op), 1u) << each.op << ", of matmul what came before";
  }
}

TEST(CheckConformance, WhatALostDeviceCannotRunIsNamedAndTheRestIsKept) {
  BrokenDevice device(BrokenDevice::Is::kLost);
  const auto result = CheckConformance(device);
  ASSERT_TRUE(result.ok()) << result.status();
  auto figures = ByName(*result);
  EXPECT_GT(figures.count("embed"), 0u);
  EXPECT_GT(figures.count("matvec"), 0u);
  EXPECT_EQ(figures.count("sample"), 0u);
  EXPECT_THAT(result->wrong, Contains("matmul: no way to multiply"));
  EXPECT_THAT(result->wrong, Contains("sample: has not run: the device was lost in matmul: "
                                      "unspecified launch failure"));
}

}  // namespace
}  // namespace rempart::benchmarks
