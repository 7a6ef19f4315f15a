// SPDX-License-Identifier: Apache-2.0
// Small decoders with seeded random weights in any storage format: one for each kind of family.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/gpu/decoder_config.h"
#include "kernels/blocks.h"
#include "worker/model/copy_weights.h"
#include "worker/model/model_config.h"
#include "worker/model/weights.h"

namespace rempart::worker {

struct MixedModelSpec {
  std::string name;
  ModelConfig config;
  kernels::DType query_type, value_type, gate_type, down_type, embedding_type;
};

inline std::vector<MixedModelSpec> MixedModelSpecs() {
  using kernels::DType;
  const auto rope = [](int64_t dim, kernels::RopeLayout layout, float base) {
    RopeSpec spec;
    for (int64_t i = 0; i < dim / 2; ++i) {
      spec.inverse_frequency.push_back(
          std::pow(base, -2.0f * static_cast<float>(i) / static_cast<float>(dim)));
    }
    spec.layout = layout;
    return spec;
  };
  const auto base = [&](int64_t heads, int64_t kv_heads, int64_t dim) {
    return benchmarks::DecoderConfig({.hidden = 256,
                                      .ffn = 512,
                                      .vocabulary = 333,
                                      .heads = heads,
                                      .kv_heads = kv_heads,
                                      .head_dim = dim,
                                      .layers = 2,
                                      .context_length = 1024},
                                     rope(dim, kernels::RopeLayout::kInterleaved, 10000.0f));
  };
  std::vector<MixedModelSpec> specs;
  specs.push_back({"llama", base(4, 2, 64), DType::kQ4_K, DType::kQ6_K, DType::kQ4_K, DType::kQ5_K,
                   DType::kQ6_K});
  MixedModelSpec gemma = {"gemma",      base(2, 1, 128), DType::kQ8_0, DType::kQ8_0,
                          DType::kQ4_0, DType::kQ5_0,    DType::kQ8_0};
  gemma.config.qk_norm = gemma.config.post_norms = true;
  gemma.config.embedding_scale = 16.0f;
  gemma.config.attention_softcap = 30.0f;
  gemma.config.logit_softcap = 20.0f;
  gemma.config.activation = Activation::kGeluTanh;
  gemma.config.ropes = {rope(128, kernels::RopeLayout::kHalves, 1e6f),
                        rope(128, kernels::RopeLayout::kHalves, 10000.0f)};
  gemma.config.layers = {{33, 1}, {0, 0}};
  specs.push_back(gemma);
  MixedModelSpec qwen = {"qwen",       base(7, 1, 32), DType::kF16, DType::kF32,
                         DType::kQ4_1, DType::kQ5_1,   DType::kBF16};
  qwen.config.qkv_bias = true;
  qwen.config.ropes = {rope(32, kernels::RopeLayout::kHalves, 1e6f)};
  qwen.config.ropes[0].scale = 1.1f;
  specs.push_back(qwen);
  MixedModelSpec partial = {"partial_rotary", base(3, 3, 80), DType::kBF16, DType::kBF16,
                            DType::kF16,      DType::kQ8_0,   DType::kF32};
  partial.config.ropes = {rope(32, kernels::RopeLayout::kHalves, 10000.0f)};
  specs.push_back(partial);
  specs.push_back({"few_bits", base(4, 2, 64), DType::kQ3_K, DType::kIQ4_XS, DType::kQ2_K,
                   DType::kMXFP4, DType::kIQ4_NL});
  return specs;
}

class MixedModel {
 public:
  // `of` is only said in the weights' partition; they are whole.
  explicit MixedModel(const MixedModelSpec& spec, const RankPosition& of = {}) : spec_(spec) {
    const ModelConfig& config = spec.config;
    weights_.partition = MakePartition(config, of);
    const int64_t queries = config.heads * config.head_dim;
    const int64_t keys = config.kv_heads * config.head_dim;
    Fill(weights_.embedding, spec.embedding_type, config.vocabulary, config.hidden, 0.5f);
    Fill(weights_.head, spec.gate_type, config.vocabulary, config.hidden, 0.1f);
    weights_.output_norm = Norm(config.hidden);
    weights_.layers.resize(config.layers.size());
    for (LayerWeights& layer : weights_.layers) {
      layer.attention_norm = Norm(config.hidden);
      layer.ffn_norm = Norm(config.hidden);
      if (config.qk_norm) {
        layer.query_norm = Norm(config.head_dim);
        layer.key_norm = Norm(config.head_dim);
      }
      if (config.post_norms) {
        layer.post_attention_norm = Norm(config.hidden);
        layer.post_ffn_norm = Norm(config.hidden);
      }
      Fill(layer.query, spec.query_type, queries, config.hidden, 0.06f);
      Fill(layer.key, spec.query_type, keys, config.hidden, 0.06f);
      Fill(layer.value, spec.value_type, keys, config.hidden, 0.06f);
      // Rows of the attention's width need not be whole blocks of every format.
      Fill(layer.output, queries % 256 == 0 ? spec.query_type : kernels::DType::kF16, config.hidden,
           queries, 0.06f);
      Fill(layer.gate, spec.gate_type, config.ffn, config.hidden, 0.06f);
      Fill(layer.up, spec.gate_type, config.ffn, config.hidden, 0.06f);
      Fill(layer.down, spec.down_type, config.hidden, config.ffn, 0.04f);
      if (config.qkv_bias) {
        layer.query.bias = Random(queries, 0.3f);
        layer.key.bias = Random(keys, 0.3f);
        layer.value.bias = Random(keys, 0.3f);
      }
    }
  }

  const ModelConfig& config() const { return spec_.config; }
  const Weights& weights() const { return weights_; }
  // As a CPU serves them.
  absl::Status Pack(const kernels::Ops& ops, ThreadPool& pool) {
    return PackWeights(ops, {}, pool, weights_);
  }

 private:
  std::vector<float> Random(int64_t count, float deviation) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::vector<float> Norm(int64_t count) {
    std::vector<float> values = Random(count, 0.1f);
    for (float& value : values) value += 1.0f;
    return values;
  }

  // Quantised blocks: random codes, scales that give about the wanted deviation.
  void Fill(Matrix& matrix, kernels::DType type, int64_t rows, int64_t cols, float deviation) {
    std::vector<uint8_t>& bytes = storage_.emplace_back(kernels::RowBytes(type, cols) * rows);
    matrix.view = {bytes.data(), type, rows, cols};
    if (!kernels::IsQuantized(type)) {
      const std::vector<float> values = Random(rows * cols, deviation);
      for (size_t i = 0; i < values.size(); ++i) {
        if (type == kernels::DType::kF32) {
          std::memcpy(bytes.data() + 4 * i, &values[i], 4);
        } else {
          const uint16_t half =
              type == kernels::DType::kF16
                  ? kernels::FloatToHalf(values[i])
                  : static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
          std::memcpy(bytes.data() + 2 * i, &half, 2);
        }
      }
      return;
    }
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
    for (size_t at = 0; at < bytes.size(); at += kernels::BlockBytes(type)) {
      PutScales(type, bytes.data() + at, deviation);
    }
  }

  static void PutScales(kernels::DType type, uint8_t* block, float deviation) {
    const auto put = [&](size_t at, float value) {
      const uint16_t half = kernels::FloatToHalf(value);
      std::memcpy(block + at, &half, 2);
    };
    switch (type) {
      case kernels::DType::kQ8_0:
        put(0, deviation / 74.0f);
        break;
      case kernels::DType::kQ4_1:
        put(0, deviation / 4.6f);
        put(2, -deviation * 1.63f);
        break;
      case kernels::DType::kQ5_1:
        put(0, deviation / 9.2f);
        put(2, -deviation * 1.68f);
        break;
      case kernels::DType::kQ4_K:
        put(0, deviation / 290.0f);
        put(2, deviation / 39.0f);
        break;
      case kernels::DType::kQ5_K:
        put(0, deviation / 580.0f);
        put(2, deviation / 39.0f);
        break;
      case kernels::DType::kQ6_K:
        put(offsetof(kernels::BlockQ6_K, d), deviation / 1300.0f);
        break;
      case kernels::DType::kQ2_K:
        put(offsetof(kernels::BlockQ2_K, d), deviation / 14.0f);
        put(offsetof(kernels::BlockQ2_K, dmin), deviation / 9.3f);
        break;
      case kernels::DType::kQ3_K:
        put(offsetof(kernels::BlockQ3_K, d), deviation / 43.0f);
        break;
      case kernels::DType::kIQ4_NL:
        put(0, deviation / 68.0f);
        break;
      case kernels::DType::kIQ4_XS:
        put(0, deviation / 1260.0f);
        break;
      case kernels::DType::kMXFP4:
        block[0] = static_cast<uint8_t>(128 + std::lround(std::log2(deviation / 6.2f)));
        break;
      default:
        put(0, deviation / 4.6f);
        break;
    }
  }

  const MixedModelSpec spec_;
  std::mt19937 random_{20262};
  std::vector<std::vector<uint8_t>> storage_;
  Weights weights_;
};

}  // namespace rempart::worker
