// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/seeded_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

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

bool Equal(const worker::Matrix& a, const worker::Matrix& b) {
  const auto bytes = static_cast<size_t>(2 * a.view.rows * a.view.cols);
  return a.view.rows == b.view.rows && a.view.cols == b.view.cols &&
         std::memcmp(a.view.data, b.view.data, bytes) == 0;
}

TEST(SeededModel, ASeedMakesTheSameWeightsEachTime) {
  const worker::ModelConfig config = SmallDecoders()[2].config;
  const SeededModel one(config, 7, LayerWeightsAre::kOwn);
  const SeededModel again(config, 7, LayerWeightsAre::kOwn);
  const SeededModel other(config, 8, LayerWeightsAre::kOwn);
  EXPECT_TRUE(Equal(one.weights().head, again.weights().head));
  EXPECT_TRUE(Equal(one.weights().layers[2].down, again.weights().layers[2].down));
  EXPECT_EQ(one.weights().layers[1].key.bias, again.weights().layers[1].key.bias);
  EXPECT_FALSE(Equal(one.weights().head, other.weights().head));
  EXPECT_FALSE(Equal(one.weights().layers[0].up, one.weights().layers[0].gate));
  EXPECT_FALSE(Equal(one.weights().layers[0].up, one.weights().layers[1].up));
}

TEST(SeededModel, ProductsKeepTheSizeOfWhatTheyMultiply) {
  const SeededModel model(SmallDecoders()[0].config, 1, LayerWeightsAre::kOwn);
  const worker::LayerWeights& layer = model.weights().layers[0];
  for (const worker::Matrix* matrix : {&layer.query, &layer.down, &model.weights().head}) {
    const double gain = RootMeanSquare(*matrix) * std::sqrt(static_cast<double>(matrix->view.cols));
    EXPECT_GT(gain, 0.7);
    EXPECT_LT(gain, 1.45);
  }
}

TEST(SeededModel, SharedLayersAreTheSameMemory) {
  const SeededModel model(SmallDecoders()[0].config, 1, LayerWeightsAre::kShared);
  ASSERT_EQ(model.weights().layers.size(), 3u);
  EXPECT_EQ(model.weights().layers[0].down.view.data, model.weights().layers[2].down.view.data);
}

TEST(Llama8B, HasItsParameters) {
  const worker::ModelConfig config = Llama8B();
  const int64_t layer = config.hidden * (2 * config.heads + 2 * config.kv_heads) * config.head_dim +
                        3 * config.hidden * config.ffn + 2 * config.hidden;
  EXPECT_EQ(static_cast<int64_t>(config.layers.size()) * layer +
                2 * config.vocabulary * config.hidden + config.hidden,
            8'030'261'248);
}

}  // namespace
}  // namespace rempart::benchmarks
