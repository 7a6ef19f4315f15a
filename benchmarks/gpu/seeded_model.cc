// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/seeded_model.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "worker/device/thread_pool.h"

namespace rempart::benchmarks {
namespace {

constexpr int kBf16Bias = 127;

std::string LayerPrefix(size_t layer) { return absl::StrCat("blk.", layer, "."); }

}  // namespace

SeededModel::SeededModel(worker::ModelConfig config, uint64_t seed, LayerWeightsAre layers,
                         HeadIs head, DigitsAre digits)
    : config_(std::move(config)), digits_(digits), state_(seed * 0x9e3779b97f4a7c15u + 1) {
  Matrix("token_embd.weight", config_.vocabulary, config_.hidden);
  if (head == HeadIs::kOwn) Matrix("output.weight", config_.vocabulary, config_.hidden);
  Vector("output_norm.weight", config_.hidden, 1.0f, 0.2f);
  const size_t own = layers == LayerWeightsAre::kShared ? 1 : config_.layers.size();
  for (size_t i = 0; i < own; ++i) Layer(LayerPrefix(i));
  const worker::TensorMap made = tensors_;
  const std::string first = LayerPrefix(0);
  for (size_t i = own; i < config_.layers.size(); ++i) {
    for (const auto& [name, tensor] : made) {
      if (!absl::StartsWith(name, first)) continue;
      worker::TensorView shared = tensor;
      shared.name = LayerPrefix(i) + name.substr(first.size());
      tensors_[shared.name] = shared;
    }
  }
}

absl::StatusOr<worker::Weights> SeededModel::Weights(const worker::RankPosition& of) const {
  worker::ThreadPool pool({.threads = 1});
  const auto cut = of.size > 1 ? worker::MatrixCut::kPairs : worker::MatrixCut::kOutputs;
  return worker::BindWeights(tensors_, config_, kernels::BestOps(), {.pack = false}, pool, of, cut);
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

void SeededModel::Vector(const std::string& name, int64_t count, float middle, float reach) {
  std::vector<uint64_t>& words = storage_.emplace_back(static_cast<size_t>((count + 1) / 2));
  auto* const bytes = reinterpret_cast<uint8_t*>(words.data());
  for (int64_t i = 0; i < count; ++i) {
    const float value = middle + reach * NextFloat();
    std::memcpy(bytes + 4 * i, &value, sizeof(value));
  }
  tensors_[name] = {name, kernels::DType::kF32, {count}, bytes, 4 * count};
}

// Four numbers at a time: sign and fraction are random, the exponent is not, so that they lie
// between 2^e and 2^(e+1) on both sides of zero, with a root mean square of about 1.53 * 2^e. Of
// FP8 1, 1.25, 1.5 and 1.75 * 2^e: a row's largest is 1.75 * 2^e, which is its scale of 2^(e-8)
// times the largest code.
void SeededModel::Matrix(const std::string& name, int64_t rows, int64_t cols) {
  const int exponent =
      static_cast<int>(std::lround(-0.5 * std::log2(static_cast<double>(cols)) - std::log2(1.53)));
  const auto field = static_cast<uint64_t>(exponent + kBf16Bias) << 7;
  const uint64_t exponents = field * 0x0001000100010001u;
  std::vector<uint64_t>& words = storage_.emplace_back(static_cast<size_t>((rows * cols + 3) / 4));
  const uint64_t random = digits_ == DigitsAre::kOfFp8 ? 0x8060806080608060u : 0x807f807f807f807fu;
  for (uint64_t& word : words) word = (Next() & random) | exponents;
  tensors_[name] = {name,
                    kernels::DType::kBF16,
                    {rows, cols},
                    reinterpret_cast<const uint8_t*>(words.data()),
                    2 * rows * cols};
}

void SeededModel::Layer(const std::string& prefix) {
  const int64_t hidden = config_.hidden;
  const int64_t queries = config_.heads * config_.head_dim;
  const int64_t keys = config_.kv_heads * config_.head_dim;
  const auto norm = [&](const char* name, int64_t count) {
    Vector(absl::StrCat(prefix, name, ".weight"), count, 1.0f, 0.2f);
  };
  norm("attn_norm", hidden);
  norm("ffn_norm", hidden);
  if (config_.qk_norm) {
    norm("attn_q_norm", config_.head_dim);
    norm("attn_k_norm", config_.head_dim);
  }
  if (config_.post_norms) {
    norm("post_attention_norm", hidden);
    norm("post_ffw_norm", hidden);
  }
  Matrix(prefix + "attn_q.weight", queries, hidden);
  Matrix(prefix + "attn_k.weight", keys, hidden);
  Matrix(prefix + "attn_v.weight", keys, hidden);
  Matrix(prefix + "attn_output.weight", hidden, queries);
  Matrix(prefix + "ffn_gate.weight", config_.ffn, hidden);
  Matrix(prefix + "ffn_up.weight", config_.ffn, hidden);
  Matrix(prefix + "ffn_down.weight", hidden, config_.ffn);
  if (!config_.qkv_bias) return;
  Vector(prefix + "attn_q.bias", queries, 0.0f, 0.3f);
  Vector(prefix + "attn_k.bias", keys, 0.0f, 0.3f);
  Vector(prefix + "attn_v.bias", keys, 0.0f, 0.3f);
}

}  // namespace rempart::benchmarks
