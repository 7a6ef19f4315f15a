// SPDX-License-Identifier: Apache-2.0
// The device's decoder over the emulated device, against the CPU's exact one: families of every
// kind with random weights of mixed formats, and a real model.
#include "worker/model/device_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/worker/model/mixed_model.h"
#include "tests/worker/model/relative_error.h"
#include "worker/device/emulated_device.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kContext = 320;

DeviceModelOptions Options() {
  DeviceModelOptions options;
  options.context_length = kContext;
  options.max_step_tokens = 96;
  options.max_sequences = 5;
  options.kv_bytes = 0;
  options.reserve_bytes = 0;
  return options;
}

// One model on both sides.
class Pair {
 public:
  explicit Pair(const MixedModelSpec& spec, DeviceModelOptions device_options = Options())
      : model(spec), device(int64_t{1} << 30), pool_({.threads = 1}) {
    device_options.kv_bytes =
        kernels::DeviceKvBlockBytes(device_options.kv_is_fp8, spec.config.kv_heads,
                                    spec.config.head_dim) *
        static_cast<int64_t>(spec.config.layers.size()) * 64;
    auto made = DeviceTransformer::Create(device, spec.config, model.weights(), device_options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) on_device = *std::move(made);
    TransformerOptions options;
    options.kv_blocks = 64;
    options.kv_type = kernels::DType::kF32;
    options.exact = true;
    auto on_cpu =
        Transformer::Create(spec.config, model.weights(), kernels::BestOps(), pool_, options);
    EXPECT_TRUE(on_cpu.ok()) << on_cpu.status();
    if (on_cpu.ok()) cpu = *std::move(on_cpu);
    tables.resize(4);
    std::vector<int32_t> blocks(64);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(7));
    for (size_t i = 0; i < 4; ++i) {
      tables[i].assign(blocks.begin() + i * 16, blocks.begin() + (i + 1) * 16);
    }
  }

  std::vector<int32_t> Ids(int count, int seed) const {
    std::vector<int32_t> ids(count);
    std::mt19937 random(seed);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % model.config().vocabulary);
    return ids;
  }

  MixedModel model;
  EmulatedDevice device;
  std::unique_ptr<DeviceTransformer> on_device;
  std::unique_ptr<Transformer> cpu;
  std::vector<std::vector<int32_t>> tables;

 private:
  ThreadPool pool_;
};

class DeviceTransformerFamilies : public ::testing::TestWithParam<MixedModelSpec> {};

// Prefill in chunks, several sequences, decode beside prefill.
TEST_P(DeviceTransformerFamilies, ComputesWhatTheCpuDoes) {
  Pair pair(GetParam());
  ASSERT_NE(pair.on_device, nullptr);
  ASSERT_NE(pair.cpu, nullptr);
  const std::vector<int32_t> a = pair.Ids(90, 1), b = pair.Ids(40, 2), c = pair.Ids(3, 3);
  const absl::Span<const int32_t> all_a(a), all_b(b), all_c(c);
  const int64_t vocabulary = pair.model.config().vocabulary;
  std::vector<StepBatch> steps(4);
  steps[0].slices = {{all_a.subspan(0, 70), 0, pair.tables[0], false}};
  steps[1].slices = {{all_b.subspan(0, 39), 0, pair.tables[1], true},
                     {all_a.subspan(70, 1), 70, pair.tables[0], true},
                     {all_c.subspan(0, 2), 0, pair.tables[2], false}};
  steps[2].slices = {{all_a.subspan(71, 18), 71, pair.tables[0], true},
                     {all_c.subspan(2, 1), 2, pair.tables[2], true},
                     {all_b.subspan(39, 1), 39, pair.tables[1], true}};
  steps[3].slices = {{all_a.subspan(89, 1), 89, pair.tables[0], true}};
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto wanting = std::count_if(steps[i].slices.begin(), steps[i].slices.end(),
                                       [](const SequenceSlice& s) { return s.wants_logits; });
    std::vector<float> actual(wanting * vocabulary), expected(wanting * vocabulary);
    const absl::Status status = pair.on_device->Forward(steps[i], absl::MakeSpan(actual));
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(pair.cpu->Forward(steps[i], absl::MakeSpan(expected)).ok());
    // BF16 activations over a few layers.
    if (wanting == 0) continue;
    EXPECT_LT(RelativeError(actual, expected), 0.02) << "step " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeviceTransformerFamilies, ::testing::ValuesIn(MixedModelSpecs()),
                         [](const auto& info) { return info.param.name; });

TEST(DeviceTransformer, Fp8CacheStaysClose) {
  MixedModelSpec spec = MixedModelSpecs()[0];
  DeviceModelOptions options = Options();
  options.kv_is_fp8 = true;
  Pair pair(spec, options);
  ASSERT_NE(pair.on_device, nullptr);
  const std::vector<int32_t> ids = pair.Ids(50, 4);
  StepBatch batch;
  batch.slices = {{ids, 0, pair.tables[0], true}};
  std::vector<float> actual(spec.config.vocabulary), expected(spec.config.vocabulary);
  ASSERT_TRUE(pair.on_device->Forward(batch, absl::MakeSpan(actual)).ok());
  ASSERT_TRUE(pair.cpu->Forward(batch, absl::MakeSpan(expected)).ok());
  EXPECT_LT(RelativeError(actual, expected), 0.05);
}

TEST(DeviceTransformer, WeightsMadeFp8StayClose) {
  const MixedModelSpec spec = MixedModelSpecs()[3];  // plain weights
  DeviceModelOptions options = Options();
  options.weights_to_fp8 = true;
  Pair pair(spec, options);
  ASSERT_NE(pair.on_device, nullptr);
  const std::vector<int32_t> ids = pair.Ids(50, 4);
  StepBatch batch;
  batch.slices = {{ids, 0, pair.tables[0], true}};
  std::vector<float> actual(spec.config.vocabulary), expected(spec.config.vocabulary);
  ASSERT_TRUE(pair.on_device->Forward(batch, absl::MakeSpan(actual)).ok());
  ASSERT_TRUE(pair.cpu->Forward(batch, absl::MakeSpan(expected)).ok());
  // E4M3 has three bits of mantissa: 2 to 3 % a product.
  EXPECT_LT(RelativeError(actual, expected), 0.1);
  EXPECT_GT(RelativeError(actual, expected), 0.005);
}

TEST(DeviceTransformer, ADecodeDoesNotDependOnWhatElseIsDecoded) {
  Pair pair(MixedModelSpecs()[0]);
  ASSERT_NE(pair.on_device, nullptr);
  const int64_t vocabulary = pair.model.config().vocabulary;
  const std::vector<int32_t> ids = pair.Ids(30, 5);
  const absl::Span<const int32_t> all(ids);
  StepBatch prompts;
  for (int i = 0; i < 3; ++i) {
    prompts.slices.push_back({all.subspan(i, 20 + i), 0, pair.tables[i], false});
  }
  ASSERT_TRUE(pair.on_device->Forward(prompts, {}).ok());
  StepBatch together;
  for (int i = 0; i < 3; ++i) {
    together.slices.push_back({all.subspan(i, 1), 20 + i, pair.tables[i], true});
  }
  std::vector<float> batched(3 * vocabulary), alone(vocabulary);
  ASSERT_TRUE(pair.on_device->Forward(together, absl::MakeSpan(batched)).ok());
  for (int i = 0; i < 3; ++i) {
    StepBatch single;
    single.slices = {together.slices[i]};
    ASSERT_TRUE(pair.on_device->Forward(single, absl::MakeSpan(alone)).ok());
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), batched.begin() + i * vocabulary)) << i;
  }
}

// Kernels may be loaded with the first, which no recording allows.
TEST(DeviceTransformer, RecordsTheSecondDecodeOfASizeAndStartsThoseAfterIt) {
  Pair pair(MixedModelSpecs()[0]);
  ASSERT_NE(pair.on_device, nullptr);
  const std::vector<int32_t> ids = pair.Ids(8, 6);
  std::vector<float> logits(pair.model.config().vocabulary), expected(logits.size());
  int64_t graphs = pair.device.graphs();
  for (int32_t position = 0; position < 5; ++position) {
    StepBatch batch;
    batch.slices = {{absl::MakeSpan(ids).subspan(position, 1), position, pair.tables[0], true}};
    ASSERT_TRUE(pair.on_device->Forward(batch, absl::MakeSpan(logits)).ok());
    ASSERT_TRUE(pair.cpu->Forward(batch, absl::MakeSpan(expected)).ok());
    EXPECT_LT(RelativeError(logits, expected), 0.02) << "position " << position;
    if (position == 1) ++graphs;
    EXPECT_EQ(pair.device.graphs(), graphs) << "position " << position;
  }
  StepBatch prompt;
  prompt.slices = {{ids, 0, pair.tables[1], true}};
  ASSERT_TRUE(pair.on_device->Forward(prompt, absl::MakeSpan(logits)).ok());
  EXPECT_EQ(pair.device.graphs(), graphs) << "none of a prompt";
}

TEST(DeviceTransformer, DecodesManyStepsWithOneWaitAndNoAllocation) {
  Pair pair(MixedModelSpecs()[0]);
  ASSERT_NE(pair.on_device, nullptr);
  const int64_t vocabulary = pair.model.config().vocabulary;
  const std::vector<int32_t> a = pair.Ids(25, 6), b = pair.Ids(9, 7), c = pair.Ids(17, 8);
  StepBatch prompts;
  prompts.slices = {{absl::MakeSpan(a).subspan(0, 24), 0, pair.tables[0], false},
                    {absl::MakeSpan(b).subspan(0, 8), 0, pair.tables[1], false},
                    {absl::MakeSpan(c).subspan(0, 16), 0, pair.tables[2], false}};
  ASSERT_TRUE(pair.on_device->Forward(prompts, {}).ok());
  const std::vector<DecodeSequence> sequences = {{a.back(), 24, pair.tables[0], {}},
                                                 {b.back(), 8, pair.tables[1], {}},
                                                 {c.back(), 16, pair.tables[2], {}}};
  constexpr int kSteps = 4;
  std::vector<int32_t> tokens;
  ASSERT_TRUE(pair.on_device->DecodeMany(sequences, kSteps, &tokens).ok());
  const int64_t allocations = pair.device.allocations();
  const int64_t waits = pair.device.waits();
  const int64_t graphs = pair.device.graphs();
  std::vector<int32_t> again;
  ASSERT_TRUE(pair.on_device->DecodeMany(sequences, kSteps, &again).ok());
  EXPECT_EQ(again, tokens);
  EXPECT_EQ(pair.device.allocations(), allocations);
  EXPECT_EQ(pair.device.waits(), waits + 1);
  EXPECT_EQ(pair.device.graphs(), graphs);

  // The same, token by token through the host.
  std::vector<int32_t> last = {a.back(), b.back(), c.back()};
  const int32_t first[] = {24, 8, 16};
  for (int step = 0; step < kSteps; ++step) {
    StepBatch batch;
    for (int i = 0; i < 3; ++i) {
      batch.slices.push_back({{&last[i], 1}, first[i] + step, pair.tables[i], true});
    }
    std::vector<float> logits(3 * vocabulary);
    ASSERT_TRUE(pair.on_device->Forward(batch, absl::MakeSpan(logits)).ok());
    for (int i = 0; i < 3; ++i) {
      const auto row = logits.begin() + i * vocabulary;
      last[i] = static_cast<int32_t>(std::max_element(row, row + vocabulary) - row);
      EXPECT_EQ(tokens[step * 3 + i], last[i]) << "step " << step << ", sequence " << i;
    }
  }
}

TEST(DeviceTransformer, CopiesBlocksBeforeTheSlices) {
  Pair pair(MixedModelSpecs()[0]);
  ASSERT_NE(pair.on_device, nullptr);
  const int64_t vocabulary = pair.model.config().vocabulary;
  const std::vector<int32_t> ids = pair.Ids(21, 9);
  const absl::Span<const int32_t> all(ids);
  StepBatch prompt;
  prompt.slices = {{all.subspan(0, 20), 0, pair.tables[0], false}};
  ASSERT_TRUE(pair.on_device->Forward(prompt, {}).ok());
  std::vector<float> original(vocabulary), fork(vocabulary);
  StepBatch next;
  next.slices = {{all.subspan(20, 1), 20, pair.tables[0], true}};
  ASSERT_TRUE(pair.on_device->Forward(next, absl::MakeSpan(original)).ok());
  StepBatch forked;
  // The second copy reads what the first one wrote.
  forked.copies = {{pair.tables[0][1], pair.tables[3][5]}, {pair.tables[3][5], pair.tables[3][6]}};
  const std::vector<int32_t> table = {pair.tables[0][0], pair.tables[3][6]};
  forked.slices = {{all.subspan(20, 1), 20, table, true}};
  ASSERT_TRUE(pair.on_device->Forward(forked, absl::MakeSpan(fork)).ok());
  EXPECT_EQ(fork, original);
}

TEST(DeviceTransformer, RefusesBatchesThatBreakItsLimits) {
  Pair pair(MixedModelSpecs()[0]);
  ASSERT_NE(pair.on_device, nullptr);
  std::vector<float> logits(pair.model.config().vocabulary);
  const auto refuse = [&](const SequenceSlice& slice, const std::string& why) {
    StepBatch batch;
    batch.slices = {slice};
    const absl::Status status = pair.on_device->Forward(batch, absl::MakeSpan(logits));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  const std::vector<int32_t> ids = {1, 2, 3}, wrong = {1, -5}, far = {100000};
  const std::vector<int32_t> no_block = {64};
  refuse({{}, 0, pair.tables[0], true}, "no tokens");
  refuse({ids, -1, pair.tables[0], true}, "no tokens");
  refuse({ids, static_cast<int32_t>(kContext) - 2, pair.tables[0], true}, "ends after");
  refuse({ids, 255, pair.tables[0], true}, "block table");
  refuse({wrong, 0, pair.tables[0], true}, "token -5");
  refuse({far, 0, pair.tables[0], true}, "token 100000");
  refuse({ids, 0, no_block, true}, "no KV block 64");
  const std::vector<int32_t> many(97, 1);
  refuse({many, 0, pair.tables[0], true}, "limits are 96");
}

TEST(DeviceTransformer, RefusesWhatAGpuCannotServeYet) {
  MixedModelSpec spec = MixedModelSpecs()[0];
  spec.config.ffn_bias = true;
  MixedModel model(spec);
  EmulatedDevice device(int64_t{1} << 30);
  const auto refused = DeviceTransformer::Create(device, spec.config, model.weights(), Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("spec.device cpu"));
  EXPECT_EQ(device.used_bytes(), 0);
}

TEST(DeviceTransformer, RefusesAModelThatDoesNotFitWithNumbers) {
  const MixedModelSpec spec = MixedModelSpecs()[0];
  MixedModel model(spec);
  EmulatedDevice device(int64_t{1} << 20);
  const auto refused = DeviceTransformer::Create(device, spec.config, model.weights(), Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("the GPU has 1 MiB free"));
  EXPECT_EQ(device.used_bytes(), 0);
}

}  // namespace
}  // namespace rempart::worker
