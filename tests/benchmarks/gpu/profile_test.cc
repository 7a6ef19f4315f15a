// SPDX-License-Identifier: Apache-2.0
// The profile of a step over the emulated device: every op is found, and what they take adds up.
#include "benchmarks/gpu/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "benchmarks/gpu/inputs.h"
#include "benchmarks/gpu/seeded_model.h"
#include "common/status_macros.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "tests/kernels/cuda/blas_fixture.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

worker::DeviceModelOptions Options() {
  worker::DeviceModelOptions options = SmallOptions();
  options.context_length = 128;
  options.max_sequences = 2;
  return options;
}

// So small that the emulator takes it as lightly as a GPU a large one.
worker::ModelConfig Tiny() {
  worker::ModelConfig config = SmallDecoders()[0].config;
  config.hidden = 64;
  config.ffn = 96;
  config.vocabulary = 128;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 32;
  config.ropes[0].inverse_frequency.resize(16);
  config.layers.resize(2);
  return config;
}

struct Decoder {
  explicit Decoder(worker::Device& device) : seeded(Tiny(), 3, LayerWeightsAre::kOwn) {
    auto bound = seeded.Weights();
    EXPECT_TRUE(bound.ok()) << bound.status();
    weights = *std::move(bound);
    auto made = worker::DeviceTransformer::Create(device, seeded.config(), weights, Options());
    EXPECT_TRUE(made.ok()) << made.status();
    model = *std::move(made);
  }
  std::vector<int32_t> Decode() {
    const std::vector<int32_t> table = BlockTable(0, 8);
    std::vector<int32_t> tokens;
    const std::vector<worker::DecodeSequence> one = {{5, 0, table, {}}};
    EXPECT_TRUE(model->DecodeMany(one, 8, &tokens).ok());
    return tokens;
  }

  const SeededModel seeded;
  worker::Weights weights;
  std::unique_ptr<worker::DeviceTransformer> model;
};

TEST(ProfilingDevice, NamesEveryOpOfAStepAndChangesNothing) {
  worker::EmulatedDevice plain(kMemory);
  ProfilingDevice device(std::make_unique<worker::EmulatedDevice>(kMemory));
  Decoder expected(plain), actual(device);
  device.TimeRecords(1);
  EXPECT_EQ(actual.Decode(), expected.Decode());
  std::vector<std::string> names;
  for (const StepOp& op : device.step()) names.push_back(op.name);
  std::vector<std::string> wanted = {"embed", "add_norm"};
  for (int layer = 0; layer < 2; ++layer) {
    wanted.insert(wanted.end(), {"product 128x64 by matvec", "rope_store", "attention_decode",
                                 "product 64x64 by matvec", "add_norm", "product 192x64 by matvec",
                                 "activate", "product 64x96 by matvec", "add_norm"});
  }
  wanted.insert(wanted.end(), {"product 128x64 by matvec", "sample"});
  EXPECT_THAT(names, ElementsAreArray(wanted));
  EXPECT_EQ(device.step()[2].weight_bytes, 128 * 64 * 2);
  EXPECT_EQ(device.step()[0].weight_bytes, 0);
}

TEST(ProfilingDevice, SaysWhatComputesAProduct) {
  kernels::cuda::BlasRoom room;
  auto emulated = std::make_unique<worker::EmulatedDevice>(kMemory);
  emulated->UseBlas(room.Products());
  ProfilingDevice device(std::move(emulated));
  const auto zeros = worker::DeviceBuffer::Make(device, 16 * 64 * 4);
  const auto y = worker::DeviceBuffer::Make(device, 16 * 32 * 2);
  ASSERT_TRUE(zeros.ok() && y.ok());
  kernels::DeviceMatmulArgs args;
  args.w.data = args.x = zeros->as<uint16_t>();
  args.w.scales = zeros->as<float>();
  args.w.rows = args.y_stride = 32;
  args.w.cols = args.x_stride = 64;
  args.y = y->as<void>();
  args.y_rows = 16;
  const auto record = [&]() -> absl::Status {
    args.w.format = kernels::DeviceFormat::kBF16;
    for (const int64_t tokens : {8, 9}) {
      args.num_tokens = tokens;
      RETURN_IF_ERROR(device.Matmul(args));
    }
    // The file does not ask for INT8 activations.
    args.w.format = kernels::DeviceFormat::kINT8Row;
    return device.Matmul(args);
  };
  device.TimeRecords(1);
  const auto graph = device.Record(record);
  ASSERT_TRUE(graph.ok()) << graph.status();
  std::vector<std::string> names;
  for (const StepOp& op : device.step()) names.push_back(op.name);
  EXPECT_THAT(names, ElementsAre("product 32x64 by matvec", "product 32x64 by cuBLASLt",
                                 "product 32x64 by tiles"));
}

TEST(MeasureProfile, WhatTheOpsTakeAddsUpToTheStep) {
  const auto result =
      MeasureProfile([] { return std::make_unique<worker::EmulatedDevice>(kMemory); }, Tiny(),
                     Options(), {.batches = {1, 2}, .prompt_tokens = 4, .steps = 2, .repeats = 1});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  std::map<std::string, double> figures;
  std::map<std::string, std::string> units;
  double of_one = 0;
  for (const Figure& figure : result->figures) {
    figures[figure.name] = figure.value;
    units[figure.name] = figure.unit;
    if (figure.name.rfind("batch 1 ", 0) == 0 && figure.name != "batch 1 step") {
      of_one += figure.value;
    }
  }
  EXPECT_NEAR(of_one, figures["batch 1 step"], 1);
  // How long each takes is the machine's affair.
  for (const char* batch : {"batch 1 ", "batch 2 "}) {
    for (const char* op :
         {"product 64x96 by matvec", "product 64x64 by matvec", "rope_store", "sample", "step"}) {
      EXPECT_EQ(figures.count(batch + std::string(op)), 1u) << op;
    }
  }
  EXPECT_THAT(units["batch 1 product 64x96 by matvec"], HasSubstr("us in 2, "));
  EXPECT_THAT(units["batch 1 rope_store"], HasSubstr("us in 2, "));
  EXPECT_EQ(figures.count("batch 1 rest"), 1u);
}

// As where graphs have no memory: what an earlier batch has shown is none of this one's.
TEST(MeasureProfile, AStepThatIsNotRecordedIsWrong) {
  const auto refusing = []() -> absl::StatusOr<std::unique_ptr<worker::Device>> {
    auto device = std::make_unique<worker::EmulatedDevice>(kMemory);
    device->RefuseGraphs(1000);
    return device;
  };
  const auto result = MeasureProfile(
      refusing, Tiny(), Options(), {.batches = {1}, .prompt_tokens = 4, .steps = 2, .repeats = 1});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, ElementsAre(HasSubstr("batch 1: the step was not recorded")));
  EXPECT_THAT(result->figures, IsEmpty());
}

}  // namespace
}  // namespace rempart::benchmarks
