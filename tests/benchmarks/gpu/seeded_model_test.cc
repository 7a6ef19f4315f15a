// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/seeded_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/numbers.h"

namespace rempart::benchmarks {
namespace {

double RootMeanSquare(const worker::Matrix& matrix) {
  double sum = 0;
  const int64_t count = matrix.view.rows * matrix.view.cols;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, static_cast<const uint8_t*>(matrix.view.data) + 2 * i, 2);
    const double value = kernels::cuda::ToFloat(kernels::cuda::Bf16{bits});
    sum += value * value;
  }
  return std::sqrt(sum / static_cast<double>(count));
}

worker::Weights WeightsOf(const SeededModel& model, const worker::RankPosition& of = {}) {
  auto weights = model.Weights(of);
  EXPECT_TRUE(weights.ok()) << weights.status();
  return weights.ok() ? *std::move(weights) : worker::Weights{};
}

bool Equal(const worker::Matrix& a, const worker::Matrix& b) {
  const auto bytes = static_cast<size_t>(2 * a.view.rows * a.view.cols);
  return a.view.rows == b.view.rows && a.view.cols == b.view.cols &&
         std::memcmp(a.view.data, b.view.data, bytes) == 0;
}

TEST(SeededModel, ASeedMakesTheSameWeightsEachTime) {
  const worker::ModelConfig config = SmallDecoders()[2].config;
  const SeededModel of_seven(config, 7, LayerWeightsAre::kOwn);
  const SeededModel of_seven_again(config, 7, LayerWeightsAre::kOwn);
  const SeededModel of_eight(config, 8, LayerWeightsAre::kOwn);
  const worker::Weights one = WeightsOf(of_seven), again = WeightsOf(of_seven_again),
                        other = WeightsOf(of_eight);
  EXPECT_TRUE(Equal(one.head, again.head));
  EXPECT_TRUE(Equal(one.layers[2].down, again.layers[2].down));
  EXPECT_EQ(one.layers[1].key.bias, again.layers[1].key.bias);
  EXPECT_FALSE(Equal(one.head, other.head));
  EXPECT_FALSE(Equal(one.layers[0].up, one.layers[0].gate));
  EXPECT_FALSE(Equal(one.layers[0].up, one.layers[1].up));
}

TEST(SeededModel, ProductsKeepTheSizeOfWhatTheyMultiply) {
  const SeededModel model(SmallDecoders()[0].config, 1, LayerWeightsAre::kOwn);
  const worker::Weights weights = WeightsOf(model);
  const worker::LayerWeights& layer = weights.layers[0];
  for (const worker::Matrix* matrix : {&layer.query, &layer.down, &weights.head}) {
    const double gain = RootMeanSquare(*matrix) * std::sqrt(static_cast<double>(matrix->view.cols));
    EXPECT_GT(gain, 0.7);
    EXPECT_LT(gain, 1.45);
  }
}

// Every number is a code of FP8 times the scale that makes the row's largest the largest code.
TEST(SeededModel, MatricesOfFewDigitsAreThoseThatFp8Holds) {
  const SeededModel model(SmallDecoders()[0].config, 7, LayerWeightsAre::kOwn, HeadIs::kOwn,
                          DigitsAre::kOfFp8);
  const worker::TensorView& matrix = model.tensors().at("blk.0.ffn_down.weight");
  const int64_t rows = matrix.shape[0], cols = matrix.shape[1];
  const auto* bits = reinterpret_cast<const uint16_t*>(matrix.data);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> row;
    for (int64_t c = 0; c < cols; ++c) {
      row.push_back(kernels::cuda::ToFloat(kernels::cuda::Bf16{bits[r * cols + c]}));
    }
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::fabs(x));
    const float scale = largest / 448;
    for (const float x : row) {
      ASSERT_EQ(kernels::cuda::ToFloat(kernels::cuda::ToFp8(x / scale)) * scale, x) << r;
    }
  }
}

TEST(SeededModel, SharedLayersAreTheSameMemory) {
  const SeededModel model(SmallDecoders()[0].config, 1, LayerWeightsAre::kShared);
  const worker::Weights weights = WeightsOf(model);
  ASSERT_EQ(weights.layers.size(), 3u);
  EXPECT_EQ(weights.layers[0].down.view.data, weights.layers[2].down.view.data);
}

TEST(SeededModel, ATiedHeadIsTheEmbedding) {
  NamedConfig named = SmolLm2();
  named.config.layers.resize(1);
  const SeededModel tied(named.config, 1, LayerWeightsAre::kOwn, named.head);
  const SeededModel own(named.config, 1, LayerWeightsAre::kOwn);
  const worker::Weights of_tied = WeightsOf(tied), of_own = WeightsOf(own);
  EXPECT_EQ(of_tied.head.view.data, of_tied.embedding.view.data);
  EXPECT_NE(of_own.head.view.data, of_own.embedding.view.data);
}

TEST(SeededModel, TwoRanksShareWhatIsThere) {
  const SeededModel model(SmallDecoders()[0].config, 1, LayerWeightsAre::kOwn);
  const worker::Weights first = WeightsOf(model, {.rank = 0, .size = 2});
  const worker::Weights second = WeightsOf(model, {.rank = 1, .size = 2});
  for (const worker::Weights* half : {&first, &second}) {
    EXPECT_EQ(half->layers[0].query.view.rows, 128);
    EXPECT_EQ(half->head.view.rows, 512);
  }
  EXPECT_EQ(first.layers[0].down.view.cols + second.layers[0].down.view.cols, 704);
  const SeededModel odd(SmallDecoders()[2].config, 1, LayerWeightsAre::kOwn);
  EXPECT_EQ(odd.Weights({.rank = 0, .size = 2}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

int64_t Parameters(const worker::ModelConfig& config, HeadIs head) {
  const int64_t norms =
      (config.post_norms ? 4 : 2) * config.hidden + (config.qk_norm ? 2 * config.head_dim : 0);
  const int64_t layer = config.hidden * (2 * config.heads + 2 * config.kv_heads) * config.head_dim +
                        3 * config.hidden * config.ffn + norms;
  return static_cast<int64_t>(config.layers.size()) * layer +
         (head == HeadIs::kOwn ? 2 : 1) * config.vocabulary * config.hidden + config.hidden;
}

TEST(Shapes, HaveTheParametersOfTheirModels) {
  EXPECT_EQ(Parameters(Llama8B(), HeadIs::kOwn), 8'030'261'248);
  EXPECT_EQ(Parameters(SmolLm2().config, SmolLm2().head), 134'515'008);
  EXPECT_EQ(Parameters(Gemma3().config, Gemma3().head), 268'098'176);
}

TEST(Shapes, EverySixthLayerOfGemmaSeesAll) {
  const worker::ModelConfig config = Gemma3().config;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    EXPECT_EQ(config.layers[i].window, i % 6 == 5 ? 0 : 512) << i;
    EXPECT_EQ(config.layers[i].rope, i % 6 == 5 ? 0 : 1) << i;
  }
}

}  // namespace
}  // namespace rempart::benchmarks
