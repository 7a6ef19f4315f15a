// SPDX-License-Identifier: Apache-2.0
// Small models of seeded random weights, in memory, of any shape.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/decoder_config.h"
#include "worker/model/model_config.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

class RandomModel {
 public:
  // Weights are of `type`; the rows of every matrix must be whole blocks of it. Biases and norms
  // are F32.
  RandomModel(const ModelConfig& config, kernels::DType type, uint64_t seed)
      : config_(config), type_(type), state_(seed) {
    const int64_t queries = config.heads * config.head_dim;
    const int64_t keys = config.kv_heads * config.head_dim;
    Matrix("token_embd.weight", config.vocabulary, config.hidden);
    Matrix("output.weight", config.vocabulary, config.hidden);
    Vector("output_norm.weight", config.hidden);
    for (size_t i = 0; i < config.layers.size(); ++i) {
      const std::string prefix = absl::StrCat("blk.", i, ".");
      Vector(prefix + "attn_norm.weight", config.hidden);
      Vector(prefix + "ffn_norm.weight", config.hidden);
      Linear(prefix + "attn_q", queries, config.hidden, config.qkv_bias);
      Linear(prefix + "attn_k", keys, config.hidden, config.qkv_bias);
      Linear(prefix + "attn_v", keys, config.hidden, config.qkv_bias);
      Linear(prefix + "attn_output", config.hidden, queries, config.output_bias);
      Linear(prefix + "ffn_gate", config.ffn, config.hidden, config.ffn_bias);
      Linear(prefix + "ffn_up", config.ffn, config.hidden, config.ffn_bias);
      Linear(prefix + "ffn_down", config.hidden, config.ffn, config.ffn_bias);
      if (config.qk_norm) {
        Vector(prefix + "attn_q_norm.weight", config.head_dim);
        Vector(prefix + "attn_k_norm.weight", config.head_dim);
      }
      if (config.post_norms) {
        Vector(prefix + "post_attention_norm.weight", config.hidden);
        Vector(prefix + "post_ffw_norm.weight", config.hidden);
      }
    }
  }
  const ModelConfig& config() const { return config_; }
  const TensorMap& tensors() const { return tensors_; }

 private:
  uint32_t Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  float NextFloat(float range) {
    return range * (static_cast<float>(Next()) / static_cast<float>(1u << 31) - 0.5f);
  }

  void Linear(const std::string& name, int64_t rows, int64_t cols, bool bias) {
    Matrix(name + ".weight", rows, cols);
    if (bias) Vector(name + ".bias", rows);
  }
  void Vector(const std::string& name, int64_t size) {
    std::vector<uint8_t>& bytes = Tensor(name, kernels::DType::kF32, {size});
    for (int64_t i = 0; i < size; ++i) Put(bytes, 4 * i, 1.0f + NextFloat(0.5f));
  }
  void Matrix(const std::string& name, int64_t rows, int64_t cols) {
    std::vector<uint8_t>& bytes = Tensor(name, type_, {rows, cols});
    if (type_ == kernels::DType::kF32) {
      for (size_t i = 0; i < bytes.size(); i += 4) Put(bytes, i, NextFloat(0.5f));
      return;
    }
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(Next());
    // Codes may be anything; scales are f16 numbers of about 2^-8 to 2^-6.
    const int64_t block = kernels::BlockBytes(type_);
    const bool last = type_ == kernels::DType::kQ6_K;
    const bool two = type_ == kernels::DType::kQ4_K || type_ == kernels::DType::kQ4_1;
    for (size_t i = 0; i < bytes.size(); i += block) {
      const size_t at = i + (last ? block - 2 : 0);
      Put(bytes, at, static_cast<uint16_t>(0x1c00 + Next() % 0x0800));
      if (two) Put(bytes, at + 2, static_cast<uint16_t>(0x1c00 + Next() % 0x0800));
    }
  }
  std::vector<uint8_t>& Tensor(const std::string& name, kernels::DType type,
                               std::vector<int64_t> shape) {
    const int64_t rows = shape.size() == 2 ? shape[0] : 1;
    std::vector<uint8_t>& bytes =
        storage_.emplace_back(rows * kernels::RowBytes(type, shape.back()));
    tensors_[name] = {name, type, std::move(shape), bytes.data(),
                      static_cast<int64_t>(bytes.size())};
    return bytes;
  }
  template <typename T>
  static void Put(std::vector<uint8_t>& bytes, size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof(value));
  }

  const ModelConfig config_;
  const kernels::DType type_;
  uint64_t state_;
  std::deque<std::vector<uint8_t>> storage_;
  TensorMap tensors_;
};

// A decoder of two layers with the sizes given.
inline ModelConfig SmallConfig(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t hidden,
                               int64_t ffn, int64_t vocabulary) {
  RopeSpec rope;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    rope.inverse_frequency.push_back(1.0f / static_cast<float>(1 + i));
  }
  ModelConfig config = benchmarks::DecoderConfig({.hidden = hidden,
                                                  .ffn = ffn,
                                                  .vocabulary = vocabulary,
                                                  .heads = heads,
                                                  .kv_heads = kv_heads,
                                                  .head_dim = head_dim,
                                                  .layers = 2,
                                                  .context_length = 256},
                                                 rope);
  config.attention_scale = 0.2f;
  return config;
}

// Layers that differ, so that one computed as another shows.
inline ModelConfig UnlikeLayers(ModelConfig config, int layers) {
  RopeSpec slow = config.ropes[0];
  for (float& frequency : slow.inverse_frequency) frequency *= 0.25f;
  config.ropes.push_back(slow);
  config.layers.resize(layers);
  for (int i = 0; i < layers; ++i) config.layers[i] = {i % 3 == 1 ? 7 : 0, i % 2};
  return config;
}

}  // namespace rempart::worker
