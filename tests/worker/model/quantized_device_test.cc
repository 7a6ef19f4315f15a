// SPDX-License-Identifier: Apache-2.0
// Quantised folders on emulated devices, one and two ranks of them: what the weights that they
// stand for compute on a CPU in F32, as far as BF16 activations allow; in which formats they lie
// there, and how many bytes they take.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>

#include "tests/kernels/cuda/blas_fixture.h"
#include "tests/worker/comm/device_ranks.h"
#include "tests/worker/model/quantized_folder.h"
#include "tests/worker/model/rank_group.h"
#include "tests/worker/model/relative_error.h"
#include "worker/comm/host_collectives.h"
#include "worker/model/device_transformer.h"
#include "worker/model/device_weights.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using kernels::DeviceFormat;
using ::testing::HasSubstr;

struct Case {
  const char* name;
  FolderLayout layout;
  int64_t group;
  DeviceFormat format;
  double bits;  // of a weight on the device, with its share of scales and zeros
};

const std::vector<Case>& Cases() {
  static const auto* cases = new std::vector<Case>{
      {"fp8_blocks", FolderLayout::kFp8Blocks, 0, DeviceFormat::kFP8Block, 8.01},
      {"fp8_rows", FolderLayout::kFp8Rows, 0, DeviceFormat::kFP8Row, 8.15},
      {"fp8_tensor", FolderLayout::kFp8Tensor, 0, DeviceFormat::kFP8Row, 8.15},
      {"int8_rows", FolderLayout::kInt8Rows, 0, DeviceFormat::kINT8Row, 8.15},
      {"awq_128", FolderLayout::kAwq, 128, DeviceFormat::kINT4Group, 4 + 24.0 / 128},
      {"awq_32", FolderLayout::kAwq, 32, DeviceFormat::kINT4Group, 4 + 24.0 / 32},
      {"gptq_64", FolderLayout::kGptq, 64, DeviceFormat::kINT4Group, 4 + 24.0 / 64},
      {"gptq_v2_128", FolderLayout::kGptqV2, 128, DeviceFormat::kINT4Group, 4 + 24.0 / 128},
      {"gptq_act_order", FolderLayout::kGptqActOrder, 64, DeviceFormat::kBF16, 16},
      {"packed_zeros_32", FolderLayout::kPackedZeros, 32, DeviceFormat::kINT4Group, 4 + 24.0 / 32},
  };
  return *cases;
}

std::string FolderName() {
  static int next = 0;
  return absl::StrCat("/tmp/rempart_on_devices_", getpid(), "_", ++next, "/");
}

DeviceModelOptions DeviceOptions(const ModelConfig& config) {
  DeviceModelOptions options;
  options.context_length = 128;
  options.max_step_tokens = 64;
  options.max_sequences = 8;
  options.reserve_bytes = 0;
  options.kv_bytes = kernels::DeviceKvBlockBytes(false, config.kv_heads, config.head_dim) *
                     static_cast<int64_t>(config.layers.size()) * kBlocks;
  return options;
}

// Logits of all steps, one after the other; of rank 0.
std::vector<float> ComputeOnDevice(DeviceTransformer& transformer, const std::vector<Step>& steps,
                                   int rank) {
  std::vector<float> all;
  for (const Step& step : steps) {
    const StepBatch batch = BatchOf(step);
    int64_t wanting = 0;
    for (const SequenceSlice& slice : batch.slices) wanting += slice.wants_logits ? 1 : 0;
    std::vector<float> logits(rank == 0 ? wanting * transformer.config().vocabulary : 0);
    const absl::Status status = transformer.Forward(batch, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

// A folder, opened, and what it computes on a CPU in F32.
struct Opened {
  Opened(FolderLayout layout, int64_t group) : folder(FolderName(), layout, group) {
    auto opened = OpenModel(folder.folder());
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) source = *std::move(opened);
  }
  std::vector<float> OnCpu() const {
    Rank plain(folder.dequantized(), source.config, kernels::BestOps(), true, {});
    return Compute(*plain.transformer, Steps(QuantizedFolder::kVocabulary), 0);
  }
  absl::StatusOr<Weights> Bind(const RankPosition& of) const {
    ThreadPool pool({.threads = 1});
    return BindWeights(source.tensors, source.config, kernels::BestOps(),
                       {.pack = false, .expand = ExpandQuantized::kNever}, pool, of,
                       MatrixCut::kPairs);
  }

  QuantizedFolder folder;
  ModelSource source;
};

class QuantizedOnDevices : public ::testing::TestWithParam<Case> {};

TEST_P(QuantizedOnDevices, ComputeWhatTheirWeightsStandFor) {
  const Opened opened(GetParam().layout, GetParam().group);
  const auto weights = opened.Bind({});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(weights->expanded.bytes().empty());
  EmulatedDevice device(kRankMemory);
  const ModelConfig& config = opened.source.config;
  const auto made = DeviceTransformer::Create(device, config, *weights, DeviceOptions(config));
  ASSERT_TRUE(made.ok()) << made.status();
  const std::vector<float> actual = ComputeOnDevice(**made, Steps(QuantizedFolder::kVocabulary), 0);
  EXPECT_LT(RelativeError(actual, opened.OnCpu()), 0.02);
}

TEST_P(QuantizedOnDevices, LieThereAsTheyAreAndSideBySide) {
  const Opened opened(GetParam().layout, GetParam().group);
  const ModelConfig& config = opened.source.config;
  const auto weights = opened.Bind({});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EmulatedDevice device(kRankMemory);
  const auto uploaded = UploadWeights(device, config, *weights, DeviceOptions(config));
  ASSERT_TRUE(uploaded.ok()) << uploaded.status();
  for (const DeviceLayer& layer : uploaded->layers) {
    for (const Product* product : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      ASSERT_EQ(product->size(), 1u);
      EXPECT_EQ(product->front().matrix.format, GetParam().format);
      // What the folder says of activations, which those of FP8 do not need.
      EXPECT_EQ(product->front().matrix.int8_activations,
                GetParam().format == DeviceFormat::kINT8Row);
    }
    EXPECT_EQ(layer.qkv[0].matrix.rows, 512);
    EXPECT_EQ(layer.gate_up[0].matrix.rows, 768);
  }
  const auto bytes = DeviceWeightsBytes(config, *weights, DeviceOptions(config));
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  constexpr double kWeights = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 384 * 256);
  constexpr double kPlain = 2 * 2 * 96 * 256;
  // Norms, and what aligns each array.
  EXPECT_NEAR(static_cast<double>(*bytes), kWeights * GetParam().bits / 8 + kPlain, 16 * 1024);
  EXPECT_EQ(static_cast<int64_t>(uploaded->memory.bytes()), *bytes);
}

// Two ranks of a folder, a device each.
class TwoRanks {
 public:
  explicit TwoRanks(const Opened& opened)
      : ranks_(library_, 2, 2, {}), weights_(2), transformers_(2) {
    EXPECT_TRUE(ranks_.all_connected());
    const ModelConfig& config = opened.source.config;
    for (int rank = 0; rank < 2; ++rank) {
      auto bound = opened.Bind({.rank = rank, .size = 2});
      EXPECT_TRUE(bound.ok()) << bound.status();
      weights_[rank] = *std::move(bound);
      auto made =
          DeviceTransformer::Create(device(rank), config, weights_[rank], DeviceOptions(config));
      EXPECT_TRUE(made.ok()) << made.status();
      transformers_[rank] = *std::move(made);
    }
  }

  EmulatedDevice& device(int rank) { return *ranks_[rank].device; }
  const Weights& weights(int rank) const { return weights_[rank]; }
  std::vector<float> Logits() {
    std::vector<float> logits;
    for (int rank = 0; rank < 2; ++rank) {
      transformers_[rank]->SetCommunicator(ranks_[rank].communicator.get());
    }
    ranks_.OnEach([&](int rank) {
      std::vector<float> own =
          ComputeOnDevice(*transformers_[rank], Steps(QuantizedFolder::kVocabulary), rank);
      if (rank == 0) logits = std::move(own);
      transformers_[rank]->SetCommunicator(nullptr);
    });
    return logits;
  }

 private:
  HostCollectives library_;
  DeviceRanks ranks_;
  std::vector<Weights> weights_;
  std::vector<std::unique_ptr<DeviceTransformer>> transformers_;
};

TEST_P(QuantizedOnDevices, AreTheSameOnTwoRanks) {
  const Opened opened(GetParam().layout, GetParam().group);
  TwoRanks ranks(opened);
  EXPECT_LT(RelativeError(ranks.Logits(), opened.OnCpu()), 0.02);
  EXPECT_LT(static_cast<double>(ranks.weights(0).bytes_read),
            0.6 * static_cast<double>(opened.Bind({})->bytes_read));
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedOnDevices, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

class QuantizedByALibrary : public ::testing::TestWithParam<Case> {};

// As on a GPU where cuBLASLt is found, which quantises activations.
TEST_P(QuantizedByALibrary, MultiplyManyTokensByALibrary) {
  const Opened opened(GetParam().layout, GetParam().group);
  const auto weights = opened.Bind({});
  ASSERT_TRUE(weights.ok()) << weights.status();
  kernels::cuda::BlasRoom room;
  EmulatedDevice device(kRankMemory);
  device.UseBlas(room.Products());
  FakeCublasLtControls& fake = kernels::cuda::FakeControls();
  const auto counts = [&] {
    return std::map<DeviceFormat, int>{{DeviceFormat::kBF16, fake.bf16_products},
                                       {DeviceFormat::kFP8Row, fake.row_products},
                                       {DeviceFormat::kFP8Block, fake.block_products},
                                       {DeviceFormat::kINT8Row, fake.int8_products}};
  };
  std::map<DeviceFormat, int> expected = counts();
  const ModelConfig& config = opened.source.config;
  const auto made = DeviceTransformer::Create(device, config, *weights, DeviceOptions(config));
  ASSERT_TRUE(made.ok()) << made.status();
  const std::vector<float> actual = ComputeOnDevice(**made, Steps(QuantizedFolder::kVocabulary), 0);
  EXPECT_LT(RelativeError(actual, opened.OnCpu()), 0.08);
  // Three steps of more than kMatvecTokens, two layers of four products.
  expected[GetParam().format] += 3 * 2 * 4;
  EXPECT_EQ(counts(), expected);
  EXPECT_EQ(fake.complaint, "");
}

TEST_P(QuantizedByALibrary, AreTheSameOnTwoRanks) {
  const Opened opened(GetParam().layout, GetParam().group);
  TwoRanks ranks(opened);
  kernels::cuda::BlasRoom rooms[2];
  for (int rank = 0; rank < 2; ++rank) ranks.device(rank).UseBlas(rooms[rank].Products());
  EXPECT_LT(RelativeError(ranks.Logits(), opened.OnCpu()), 0.08);
  EXPECT_EQ(kernels::cuda::FakeControls().complaint, "");
}

// What the library multiplies.
INSTANTIATE_TEST_SUITE_P(Served, QuantizedByALibrary,
                         ::testing::Values(Cases()[0], Cases()[1], Cases()[3]),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(QuantizedCuts, AGroupThatRanksWouldCutIsRefusedByName) {
  const Opened opened(FolderLayout::kGptq, -1);
  const auto refused = opened.Bind({.rank = 0, .size = 2});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("model.layers.0.mlp.down_proj.weight: its weights come in blocks of 384 "
                        "columns, and ranks on GPUs would cut them at columns 0 and 128: set "
                        "parallelism.tensor to fewer ranks"));
}

TEST(QuantizedCuts, ABlockThatRanksWouldCutIsRefusedByName) {
  const Opened opened(FolderLayout::kFp8Blocks, 0);
  const auto columns = opened.Bind({.rank = 1, .size = 4});
  EXPECT_THAT(std::string(columns.status().message()),
              HasSubstr("model.layers.0.mlp.down_proj.weight: its weights come in blocks of 128 "
                        "columns, and ranks on GPUs would cut them at columns 64 and 192"));
  // Rows alone, as where down is not quantised.
  auto weights = opened.Bind({});
  ASSERT_TRUE(weights.ok()) << weights.status();
  weights->layers[0].query.first_row = 64;
  weights->layers[0].query.view.rows = 128;
  const auto rows = DeviceWeightsBytes(opened.source.config, *weights, {});
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(rows.status().message()),
              HasSubstr("model.layers.0.self_attn.q_proj: its weights come in blocks of 128 rows, "
                        "and ranks on GPUs would cut them at row 64"));
}

}  // namespace
}  // namespace rempart::worker
