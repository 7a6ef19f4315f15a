// SPDX-License-Identifier: Apache-2.0
#include "worker/model/families/families.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxSize = 1 << 24;

absl::StatusOr<int64_t> Size(const GgufFile& file, const std::string& key,
                             std::optional<uint64_t> fallback, int64_t limit) {
  ASSIGN_OR_RETURN(const uint64_t value, file.metadata.Uint(key, fallback));
  if (value == 0 || value > static_cast<uint64_t>(limit)) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is ", value, "; it must be between 1 and ", limit));
  }
  return static_cast<int64_t>(value);
}

}  // namespace

std::vector<float> InverseFrequencies(double base, int64_t rotary_dim, double factor) {
  std::vector<float> inverse(rotary_dim / 2);
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim);
    inverse[i] = static_cast<float>(std::pow(base, exponent) / factor);
  }
  return inverse;
}

absl::StatusOr<ModelConfig> ReadCommon(const GgufFile& file, const std::string& architecture) {
  ModelConfig config;
  config.architecture = architecture;
  const std::string prefix = architecture + ".";
  const auto none = std::nullopt;
  ASSIGN_OR_RETURN(const int64_t layers, Size(file, prefix + "block_count", none, 4096));
  ASSIGN_OR_RETURN(config.hidden, Size(file, prefix + "embedding_length", none, kMaxSize));
  ASSIGN_OR_RETURN(config.ffn, Size(file, prefix + "feed_forward_length", none, kMaxSize));
  ASSIGN_OR_RETURN(config.heads, Size(file, prefix + "attention.head_count", none, 65536));
  ASSIGN_OR_RETURN(config.kv_heads,
                   Size(file, prefix + "attention.head_count_kv", config.heads, 65536));
  ASSIGN_OR_RETURN(config.context_length, Size(file, prefix + "context_length", none, 1 << 30));
  ASSIGN_OR_RETURN(config.head_dim,
                   Size(file, prefix + "attention.key_length", config.hidden / config.heads, 256));
  ASSIGN_OR_RETURN(const double epsilon,
                   file.metadata.Float(prefix + "attention.layer_norm_rms_epsilon"));
  config.norm_epsilon = static_cast<float>(epsilon);
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  config.layers.resize(layers);
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(prefix, "attention.head_count (", config.heads,
                                                   ") is not a multiple of head_count_kv (",
                                                   config.kv_heads, ")"));
  }
  if (config.head_dim % 8 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the head dimension ", config.head_dim,
                                                   " is not a multiple of 8: not supported"));
  }
  const auto embedding = file.tensors.find("token_embd.weight");
  if (embedding == file.tensors.end()) {
    return absl::InvalidArgumentError("the tensor token_embd.weight is missing");
  }
  config.vocabulary = embedding->second.rows();
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(const absl::string_view architecture,
                   file.metadata.String("general.architecture"));
  if (architecture == "llama") return ReadLlama(file);
  if (architecture == "gemma3") return ReadGemma3(file);
  return absl::UnimplementedError(absl::StrCat("the architecture \"", architecture,
                                               "\" is not served; this version serves llama and "
                                               "gemma3"));
}

}  // namespace rempart::worker
