// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/seeded_model.h"

#include <cmath>
#include <utility>

namespace rempart::benchmarks {
namespace {

using worker::LayerWeights;
using worker::Matrix;
using worker::ModelConfig;

constexpr int kBf16Bias = 127;

ModelConfig Decoder(int64_t hidden, int64_t ffn, int64_t vocabulary, int64_t heads,
                    int64_t kv_heads, int64_t head_dim, size_t layers, float rope_base) {
  ModelConfig config;
  config.architecture = "random";
  config.hidden = hidden;
  config.ffn = ffn;
  config.vocabulary = vocabulary;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.context_length = 8192;
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  worker::RopeSpec& rope = config.ropes.emplace_back();
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    rope.inverse_frequency.push_back(
        std::pow(rope_base, -2.0f * static_cast<float>(i) / static_cast<float>(head_dim)));
  }
  rope.layout = kernels::RopeLayout::kHalves;
  config.layers.resize(layers);
  return config;
}

}  // namespace

SeededModel::SeededModel(ModelConfig config, uint64_t seed, LayerWeightsAre layers)
    : config_(std::move(config)), state_(seed * 0x9e3779b97f4a7c15u + 1) {
  weights_.partition = worker::MakePartition(config_, {});
  Fill(weights_.embedding, config_.vocabulary, config_.hidden);
  Fill(weights_.head, config_.vocabulary, config_.hidden);
  weights_.output_norm = Floats(config_.hidden, 1.0f, 0.2f);
  while (weights_.layers.size() < config_.layers.size()) {
    const bool is_copy = layers == LayerWeightsAre::kShared && !weights_.layers.empty();
    weights_.layers.push_back(is_copy ? weights_.layers[0] : MakeLayer());
  }
}

// xorshift64*.
uint64_t SeededModel::Next() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return state_ * 0x2545f4914f6cdd1du;
}

float SeededModel::NextFloat() {
  return static_cast<float>(static_cast<int32_t>(Next() >> 32)) / 2147483648.0f;
}

std::vector<float> SeededModel::Floats(int64_t count, float middle, float reach) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = middle + reach * NextFloat();
  return values;
}

// Four numbers at a time: sign and fraction are random, the exponent is not, so that they lie
// between 2^e and 2^(e+1) on both sides of zero, with a root mean square of about 1.53 * 2^e.
void SeededModel::Fill(Matrix& matrix, int64_t rows, int64_t cols) {
  const int exponent =
      static_cast<int>(std::lround(-0.5 * std::log2(static_cast<double>(cols)) - std::log2(1.53)));
  const auto field = static_cast<uint64_t>(exponent + kBf16Bias) << 7;
  const uint64_t exponents = field * 0x0001000100010001u;
  std::vector<uint64_t>& words = storage_.emplace_back(static_cast<size_t>((rows * cols + 3) / 4));
  for (uint64_t& word : words) word = (Next() & 0x807f807f807f807fu) | exponents;
  matrix.view = {reinterpret_cast<const uint8_t*>(words.data()), kernels::DType::kBF16, rows, cols};
}

LayerWeights SeededModel::MakeLayer() {
  const int64_t queries = config_.heads * config_.head_dim;
  const int64_t keys = config_.kv_heads * config_.head_dim;
  LayerWeights layer;
  layer.attention_norm = Floats(config_.hidden, 1.0f, 0.2f);
  layer.ffn_norm = Floats(config_.hidden, 1.0f, 0.2f);
  if (config_.qk_norm) {
    layer.query_norm = Floats(config_.head_dim, 1.0f, 0.2f);
    layer.key_norm = Floats(config_.head_dim, 1.0f, 0.2f);
  }
  Fill(layer.query, queries, config_.hidden);
  Fill(layer.key, keys, config_.hidden);
  Fill(layer.value, keys, config_.hidden);
  Fill(layer.output, config_.hidden, queries);
  Fill(layer.gate, config_.ffn, config_.hidden);
  Fill(layer.up, config_.ffn, config_.hidden);
  Fill(layer.down, config_.hidden, config_.ffn);
  if (config_.qkv_bias) {
    layer.query.bias = Floats(queries, 0.0f, 0.3f);
    layer.key.bias = Floats(keys, 0.0f, 0.3f);
    layer.value.bias = Floats(keys, 0.0f, 0.3f);
  }
  return layer;
}

ModelConfig Llama8B() { return Decoder(4096, 14336, 128256, 32, 8, 128, 32, 500000.0f); }

std::vector<NamedConfig> SmallDecoders() {
  std::vector<NamedConfig> decoders = {{"llama", Decoder(256, 704, 1024, 4, 2, 64, 3, 500000.0f)},
                                       {"mistral", Decoder(256, 896, 1024, 4, 4, 64, 3, 1e6f)},
                                       {"qwen", Decoder(224, 608, 1024, 7, 1, 32, 3, 1e6f)}};
  for (worker::LayerSpec& layer : decoders[1].config.layers) layer.window = 40;
  decoders[2].config.qkv_bias = true;
  decoders[2].config.qk_norm = true;
  return decoders;
}

}  // namespace rempart::benchmarks
