// SPDX-License-Identifier: Apache-2.0
// A model computed by several ranks is the model computed by one, bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/model/rank_group.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void ExpectSameOnAnyNumberOfRanks(const TensorMap& tensors, const ModelConfig& config,
                                  const std::vector<int>& sizes) {
  std::vector<GroupShape> shapes;
  for (const int size : sizes) shapes.push_back({size, 1, 0});
  ExpectSameOnAllShapes(tensors, config, shapes);
}

TEST(TensorParallel, StoriesIsTheSameOnAnyNumberOfRanks) {
  const auto source = OpenModel("tests/goldens/stories/stories260K.f32.gguf");
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectSameOnAnyNumberOfRanks(source->tensors, source->config, {2, 4, 8});
}

TEST(TensorParallel, NineHeadsOverThreeKvHeadsWithUnevenSharesOfTheFfn) {
  const RandomModel model(SmallConfig(9, 3, 32, 160, 224, 333), kernels::DType::kQ8_0, 1);
  ExpectSameOnAnyNumberOfRanks(model.tensors(), model.config(), {3, 9});
}

TEST(TensorParallel, OneKvHeadIsHeldByAllRanks) {
  ModelConfig config = SmallConfig(4, 1, 64, 256, 512, 260);
  config.qk_norm = config.post_norms = true;
  config.activation = Activation::kGeluTanh;
  config.logit_softcap = 30.0f;
  for (const auto type : {kernels::DType::kQ4_K, kernels::DType::kQ6_K}) {
    const RandomModel model(config, type, 2);
    ExpectSameOnAnyNumberOfRanks(model.tensors(), config, {2, 4});
  }
}

TEST(TensorParallel, OddShapesWithBiases) {
  ModelConfig config = SmallConfig(6, 2, 8, 40, 52, 77);
  config.qkv_bias = config.output_bias = config.ffn_bias = true;
  const RandomModel model(config, kernels::DType::kF32, 3);
  ExpectSameOnAnyNumberOfRanks(model.tensors(), config, {2, 6});
}

// Shares that end inside a group of int8 activations are gathered as floats.
TEST(TensorParallel, HeadsThatAreNoWholeGroupsOfActivations) {
  ModelConfig config = SmallConfig(8, 4, 8, 64, 96, 50);
  config.qkv_bias = true;
  const RandomModel model(config, kernels::DType::kQ4_1, 4);
  ExpectSameOnAnyNumberOfRanks(model.tensors(), config, {2, 4, 8});
}

TEST(TensorParallel, EachRankReadsItsRowsAndHoldsItsKvHeads) {
  const ModelConfig config = SmallConfig(9, 3, 32, 192, 384, 320);
  const RandomModel model(config, kernels::DType::kQ8_0, 5);
  ThreadPool pool({.threads = 1});
  const auto read = [&](const RankPosition& of) {
    auto weights =
        BindWeights(model.tensors(), config, kernels::BestOps(), {.pack = false}, pool, of);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return weights->bytes_read;
  };
  int64_t norms = 0;
  for (const auto& [name, tensor] : model.tensors()) {
    if (tensor.shape.size() == 1) norms += tensor.bytes;
  }
  const int64_t whole = read({0, 1});
  int64_t sum = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const int64_t part = read({rank, 3});
    EXPECT_LT(part, whole * 36 / 100);
    sum += part;
  }
  EXPECT_EQ(sum, whole + 2 * norms);
  const auto kv = kernels::DType::kF16;
  EXPECT_EQ(3 * KvBytesPerBlock(config, kv, {1, 3}), KvBytesPerBlock(config, kv));
  EXPECT_EQ(3 * KvBytesPerBlock(config, kv, {8, 9}), KvBytesPerBlock(config, kv));
}

TEST(TensorParallel, SaysWhichNumbersOfRanksAModelCanBeCutInto) {
  EXPECT_THAT(AllowedTensorParallel(SmallConfig(9, 3, 64, 576, 1536, 49152)), ElementsAre(1, 3, 9));
  EXPECT_THAT(AllowedTensorParallel(SmallConfig(4, 1, 256, 640, 2048, 262144)),
              ElementsAre(1, 2, 4));
  EXPECT_THAT(AllowedTensorParallel(SmallConfig(64, 8, 128, 8192, 28672, 128256)),
              ElementsAre(1, 2, 4, 8, 16, 32, 64));
  EXPECT_THAT(AllowedTensorParallel(SmallConfig(6, 2, 8, 40, 52, 77)), ElementsAre(1, 2, 6));
  const ModelConfig smollm = SmallConfig(9, 3, 64, 576, 1536, 49152);
  EXPECT_TRUE(CheckTensorParallel(smollm, 3).ok());
  EXPECT_EQ(CheckTensorParallel(smollm, 2).message(),
            "parallelism.tensor is 2, but 9 attention heads over 3 KV heads can be shared by "
            "1, 3, 9 ranks only: set one of these");
  EXPECT_FALSE(CheckTensorParallel(smollm, 0).ok());
  EXPECT_FALSE(CheckTensorParallel(smollm, -3).ok());
  const RandomModel model(SmallConfig(6, 2, 8, 40, 52, 77), kernels::DType::kF32, 6);
  ThreadPool pool({.threads = 1});
  const auto refused = BindWeights(model.tensors(), model.config(), kernels::BestOps(),
                                   {.pack = false}, pool, {0, 4});
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("1, 2, 6 ranks only"));
}

TEST(TensorParallel, ALostPeerFailsTheStepAndANewCommunicatorServesTheNext) {
  const RandomModel model(SmallConfig(4, 2, 32, 64, 96, 64), kernels::DType::kQ8_0, 7);
  const kernels::Ops& ops = kernels::BestOps();
  Rank zero(model.tensors(), model.config(), ops, false, {0, 2});
  Rank one(model.tensors(), model.config(), ops, false, {1, 2});
  const std::vector<Step> steps = Steps(64);
  std::vector<float> logits(64);
  EXPECT_EQ(zero.transformer->Forward(BatchOf(steps[0]), absl::MakeSpan(logits)).code(),
            absl::StatusCode::kFailedPrecondition);
  {
    Group group = CreateInProcess(2, {});
    group[1].reset();
    zero.transformer->SetCommunicator(group[0].get());
    const absl::Status lost = zero.transformer->Forward(BatchOf(steps[0]), absl::MakeSpan(logits));
    EXPECT_THAT(std::string(lost.message()), HasSubstr("rank 1 is gone"));
  }
  Group group = CreateInProcess(2, {});
  Rank alone(model.tensors(), model.config(), ops, false, {0, 1});
  std::vector<float> after;
  OnAllRanks(group, [&](Communicator& communicator) {
    Rank& rank = communicator.rank() == 0 ? zero : one;
    rank.transformer->SetCommunicator(&communicator);
    std::vector<float> own = Compute(*rank.transformer, steps, communicator.rank());
    if (communicator.rank() == 0) after = std::move(own);
  });
  EXPECT_EQ(after, Compute(*alone.transformer, steps, 0));
}

}  // namespace
}  // namespace rempart::worker
