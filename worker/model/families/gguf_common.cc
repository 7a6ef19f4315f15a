// SPDX-License-Identifier: Apache-2.0
#include "worker/model/families/gguf_common.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/rope.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxSize = 1 << 24;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxContext = 1 << 30;

absl::StatusOr<int64_t> Size(const GgufFile& file, const std::string& key,
                             std::optional<uint64_t> fallback, int64_t limit) {
  ASSIGN_OR_RETURN(const uint64_t value, file.metadata.Uint(key, fallback));
  if (value == 0 || value > static_cast<uint64_t>(limit)) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is ", value, "; it must be between 1 and ", limit));
  }
  return static_cast<int64_t>(value);
}

// The F32 tensor `name` of `size` elements, or nothing when the file has none.
absl::StatusOr<std::vector<float>> Factors(const GgufFile& file, const std::string& name,
                                           size_t size) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end()) return std::vector<float>();
  const TensorView& tensor = found->second;
  if (tensor.type != kernels::DType::kF32 || tensor.rows() != 1 ||
      tensor.cols() != static_cast<int64_t>(size)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " must be F32 with ", size, " elements, not ", tensor.ShapeText()));
  }
  const auto* values = reinterpret_cast<const float*>(tensor.data);
  for (size_t i = 0; i < size; ++i) {
    if (!(values[i] > 0)) {
      return absl::InvalidArgumentError(absl::StrCat(name, " holds a factor that is not positive"));
    }
  }
  return std::vector<float>(values, values + size);
}

std::vector<float> Divided(std::vector<float> values, const std::vector<float>& by) {
  for (size_t i = 0; i < by.size(); ++i) values[i] /= by[i];
  return values;
}

absl::Status ReadLongRope(const GgufFile& file, const std::string& prefix, RopeSpec& rope,
                          ModelConfig& config) {
  const size_t half = rope.inverse_frequency.size();
  ASSIGN_OR_RETURN(const auto long_factors, Factors(file, "rope_factors_long.weight", half));
  ASSIGN_OR_RETURN(const auto short_factors, Factors(file, "rope_factors_short.weight", half));
  if (long_factors.empty() != short_factors.empty()) {
    return absl::InvalidArgumentError(
        "of rope_factors_long.weight and rope_factors_short.weight one is missing");
  }
  if (long_factors.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(rope.long_beyond, Size(file, prefix + "scaling.original_context_length",
                                          config.context_length, kMaxContext));
  const float factor = LongRopeAttentionFactor(
      static_cast<double>(config.context_length) / static_cast<double>(rope.long_beyond),
      static_cast<double>(rope.long_beyond));
  ASSIGN_OR_RETURN(const double scale, file.metadata.Float(prefix + "scaling.attn_factor", factor));
  rope.scale = static_cast<float>(scale);
  rope.long_inverse_frequency = Divided(rope.inverse_frequency, long_factors);
  rope.inverse_frequency = Divided(std::move(rope.inverse_frequency), short_factors);
  return absl::OkStatus();
}

absl::Status ReadYarn(const GgufFile& file, const std::string& prefix, double base, double factor,
                      RopeSpec& rope, ModelConfig& config) {
  ASSIGN_OR_RETURN(const int64_t original, Size(file, prefix + "scaling.original_context_length",
                                                config.context_length, kMaxContext));
  YarnScaling yarn;
  yarn.base = base;
  yarn.factor = factor;
  yarn.original_context = static_cast<double>(original);
  ASSIGN_OR_RETURN(yarn.beta_fast, file.metadata.Float(prefix + "scaling.yarn_beta_fast", 32.0));
  ASSIGN_OR_RETURN(yarn.beta_slow, file.metadata.Float(prefix + "scaling.yarn_beta_slow", 1.0));
  if (!(yarn.beta_fast > 0) || !(yarn.beta_slow > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, "scaling.yarn_beta_fast and yarn_beta_slow must be positive, not ",
                     yarn.beta_fast, " and ", yarn.beta_slow));
  }
  ASSIGN_OR_RETURN(const double attention,
                   file.metadata.Float(prefix + "scaling.attn_factor", 1.0));
  ScaleYarn(yarn, rope.inverse_frequency);
  rope.scale = YarnAttentionFactor(factor) * static_cast<float>(attention);
  const double extended = std::min(factor * yarn.original_context, double{kMaxContext});
  config.context_length = std::max(config.context_length, static_cast<int64_t>(extended));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadGgufCommon(const GgufFile& file, const std::string& architecture) {
  ModelConfig config;
  config.architecture = architecture;
  const std::string prefix = architecture + ".";
  const auto none = std::nullopt;
  ASSIGN_OR_RETURN(const uint64_t experts, file.metadata.Uint(prefix + "expert_count", 0));
  if (experts > 0) {
    return absl::UnimplementedError(
        absl::StrCat(prefix, "expert_count is ", experts, ": mixture of experts is not served"));
  }
  ASSIGN_OR_RETURN(const int64_t layers, Size(file, prefix + "block_count", none, 4096));
  ASSIGN_OR_RETURN(config.hidden, Size(file, prefix + "embedding_length", none, kMaxSize));
  ASSIGN_OR_RETURN(config.ffn, Size(file, prefix + "feed_forward_length", none, kMaxSize));
  ASSIGN_OR_RETURN(config.heads, Size(file, prefix + "attention.head_count", none, 65536));
  ASSIGN_OR_RETURN(config.kv_heads,
                   Size(file, prefix + "attention.head_count_kv", config.heads, 65536));
  ASSIGN_OR_RETURN(config.context_length, Size(file, prefix + "context_length", none, kMaxContext));
  ASSIGN_OR_RETURN(config.head_dim, Size(file, prefix + "attention.key_length",
                                         config.hidden / config.heads, kMaxHeadDim));
  ASSIGN_OR_RETURN(const double epsilon,
                   file.metadata.Float(prefix + "attention.layer_norm_rms_epsilon"));
  if (!(epsilon > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(prefix, "attention.layer_norm_rms_epsilon is ",
                                                   epsilon, "; it must be above 0"));
  }
  config.norm_epsilon = static_cast<float>(epsilon);
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  config.layers.resize(layers);
  config.qkv_bias =
      file.tensors.contains("blk.0.attn_q.bias") || file.tensors.contains("blk.0.attn_qkv.bias");
  config.output_bias = file.tensors.contains("blk.0.attn_output.bias");
  config.ffn_bias = file.tensors.contains("blk.0.ffn_down.bias");
  const auto embedding = file.tensors.find("token_embd.weight");
  if (embedding == file.tensors.end()) {
    return absl::InvalidArgumentError("the tensor token_embd.weight is missing");
  }
  config.vocabulary = embedding->second.rows();
  if (config.vocabulary > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat("token_embd.weight has ", config.vocabulary,
                                                   " rows; at most ", kMaxSize, " are served"));
  }
  return config;
}

absl::StatusOr<RopeSpec> ReadGgufRope(const GgufFile& file, kernels::RopeLayout layout,
                                      ModelConfig& config) {
  const std::string prefix = config.architecture + ".rope.";
  ASSIGN_OR_RETURN(const double base, file.metadata.Float(prefix + "freq_base", 10000.0));
  ASSIGN_OR_RETURN(const uint64_t rotary,
                   file.metadata.Uint(prefix + "dimension_count", config.head_dim));
  ASSIGN_OR_RETURN(const absl::string_view type,
                   file.metadata.String(prefix + "scaling.type", "none"));
  ASSIGN_OR_RETURN(const double factor, file.metadata.Float(prefix + "scaling.factor", 1.0));
  if (rotary == 0 || rotary % 2 != 0 || static_cast<int64_t>(rotary) > config.head_dim ||
      !(base > 1) || !(factor > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, "*: freq_base ", base, ", dimension_count ", rotary,
                     " or scaling.factor ", factor, " is invalid for heads of ", config.head_dim));
  }
  RopeSpec rope;
  rope.layout = layout;
  const auto dimensions = static_cast<int64_t>(rotary);
  rope.inverse_frequency = InverseFrequencies(base, dimensions, type == "linear" ? factor : 1.0);
  if (type == "yarn") {
    RETURN_IF_ERROR(ReadYarn(file, prefix, base, factor, rope, config));
  } else if (type != "none" && type != "linear" && type != "longrope") {
    return absl::UnimplementedError(
        absl::StrCat(prefix, "scaling.type \"", type,
                     "\" is not served; served are none, linear, yarn and longrope"));
  }
  RETURN_IF_ERROR(ReadLongRope(file, prefix, rope, config));
  // Llama 3.1's scaling, as a factor for each frequency.
  ASSIGN_OR_RETURN(const auto factors,
                   Factors(file, "rope_freqs.weight", rope.inverse_frequency.size()));
  rope.inverse_frequency = Divided(std::move(rope.inverse_frequency), factors);
  return rope;
}

absl::StatusOr<int64_t> ReadGgufWindow(const GgufFile& file, const ModelConfig& config) {
  const std::string key = config.architecture + ".attention.sliding_window";
  ASSIGN_OR_RETURN(const uint64_t window, file.metadata.Uint(key, 0));
  if (window > uint64_t{kMaxContext}) {
    return absl::InvalidArgumentError(absl::StrCat(key, " is ", window, ", which is too large"));
  }
  return static_cast<int64_t>(window);
}

}  // namespace rempart::worker
