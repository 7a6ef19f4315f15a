// SPDX-License-Identifier: Apache-2.0
// The parts over the emulated device: they find nothing wrong with it, find what is wrong with one
// that computes badly, and their figures are those of the arithmetic.
#include "benchmarks/gpu/parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "benchmarks/gpu/seeded_model.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

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
  const auto result = MeasureSpeed(*ready->model, {.bytes_per_second = 1e12, .flops = 1e15}, sizes);
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
  // Without knowledge of the GPU there are no shares of what it could do.
  const auto unknown = MeasureSpeed(*ready->model, {}, sizes);
  ASSERT_TRUE(unknown.ok()) << unknown.status();
  EXPECT_EQ(ByName(*unknown).count("decode_1_of_memory_bound"), 0u);
  EXPECT_EQ(ByName(*unknown).count("prefill_32_of_peak"), 0u);
}

TEST(GetReady, PassesOnWhyThereIsNoDevice) {
  const auto ready = GetReady([] { return worker::DeviceUnavailable("no driver"); },
                              SmallDecoders()[0].config, SmallOptions());
  EXPECT_TRUE(worker::IsDeviceUnavailable(ready.status())) << ready.status();
}

TEST(PeakFlops, IsThatOfTheDataSheet) {
  EXPECT_NEAR(PeakFlops(ProductType::kBF16, 9, 0, 132, 1'830'000'000), 989e12, 1e12);
  EXPECT_NEAR(PeakFlops(ProductType::kBF16, 8, 0, 108, 1'410'000'000), 312e12, 1e12);
  EXPECT_NEAR(PeakFlops(ProductType::kBF16, 8, 9, 58, 2'040'000'000), 121e12, 1e12);
  EXPECT_NEAR(PeakFlops(ProductType::kFP8, 9, 0, 132, 1'830'000'000), 1979e12, 1e12);
  EXPECT_NEAR(PeakFlops(ProductType::kFP8, 8, 0, 108, 1'410'000'000), 312e12, 1e12) << "in BF16";
  EXPECT_EQ(PeakFlops(ProductType::kBF16, 12, 0, 188, 2'600'000'000), 0) << "not known";
}

}  // namespace
}  // namespace rempart::benchmarks
