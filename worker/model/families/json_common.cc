// SPDX-License-Identifier: Apache-2.0
#include "worker/model/families/json_common.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/rope.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxSize = 1 << 24;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxContext = 1 << 30;

// Fields of which any value other than null, false or an empty one changes what is computed.
absl::Status RefuseUnserved(const ConfigJson& json) {
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    if (!json.Has(key)) continue;
    return absl::UnimplementedError(
        absl::StrCat(json.Where(key), ": mixture of experts is not served"));
  }
  for (const char* key :
       {"use_bidirectional_attention", "is_encoder_decoder", "add_cross_attention",
        "attention_chunk_size", "no_rope_layers", "residual_multiplier", "embedding_multiplier",
        "attention_multiplier", "logits_scaling", "llama_4_scaling", "attention_sinks"}) {
    if (!json.Has(key)) continue;
    const absl::StatusOr<bool> flag = json.Bool(key, false);
    if (flag.ok() && !*flag) continue;
    return absl::UnimplementedError(absl::StrCat(json.Where(key), " is not served"));
  }
  return absl::OkStatus();
}

absl::Status CheckActivation(const ConfigJson& json, ModelConfig& config) {
  const char* key = json.Has("hidden_activation") ? "hidden_activation" : "hidden_act";
  ASSIGN_OR_RETURN(const std::string name, json.String(key, "silu"));
  if (name == "silu" || name == "swish") {
    config.activation = Activation::kSilu;
  } else if (name == "gelu_pytorch_tanh") {
    config.activation = Activation::kGeluTanh;
  } else {
    return absl::UnimplementedError(absl::StrCat(
        json.Where(key), " \"", name, "\" is not served; served are silu and gelu_pytorch_tanh"));
  }
  return absl::OkStatus();
}

struct RopeSizes {
  double base = 0;
  double factor = 1;
  int64_t original = 0;  // context before scaling
};

absl::StatusOr<int64_t> OriginalContext(const ConfigJson& json, const ConfigJson& parameters,
                                        const ModelConfig& config) {
  constexpr char kKey[] = "original_max_position_embeddings";
  const ConfigJson& holder = parameters.Has(kKey) ? parameters : json;
  return holder.Size(kKey, config.context_length, kMaxContext);
}

absl::Status ReadLlama3(const ConfigJson& parameters, const RopeSizes& sizes, RopeSpec& rope) {
  Llama3Scaling scaling;
  scaling.factor = sizes.factor;
  scaling.original_context = static_cast<double>(sizes.original);
  ASSIGN_OR_RETURN(scaling.low_frequency, parameters.Number("low_freq_factor", std::nullopt));
  ASSIGN_OR_RETURN(scaling.high_frequency, parameters.Number("high_freq_factor", std::nullopt));
  if (!(scaling.low_frequency > 0) || !(scaling.high_frequency > scaling.low_frequency)) {
    return absl::InvalidArgumentError(
        absl::StrCat(parameters.Where("low_freq_factor"),
                     " must be positive and smaller than high_freq_factor"));
  }
  ScaleLlama3(scaling, rope.inverse_frequency);
  return absl::OkStatus();
}

absl::Status ReadYarn(const ConfigJson& parameters, const RopeSizes& sizes, RopeSpec& rope,
                      ModelConfig& config) {
  for (const char* key : {"mscale", "mscale_all_dim", "truncate"}) {
    if (!parameters.Has(key)) continue;
    return absl::UnimplementedError(absl::StrCat(parameters.Where(key), " is not served"));
  }
  YarnScaling yarn;
  yarn.base = sizes.base;
  yarn.factor = sizes.factor;
  yarn.original_context = static_cast<double>(sizes.original);
  ASSIGN_OR_RETURN(yarn.beta_fast, parameters.Number("beta_fast", 32.0));
  ASSIGN_OR_RETURN(yarn.beta_slow, parameters.Number("beta_slow", 1.0));
  if (!(yarn.beta_slow > 0) || !(yarn.beta_fast > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(parameters.Where("beta_fast"), " and beta_slow must be positive"));
  }
  ASSIGN_OR_RETURN(const double attention,
                   parameters.Number("attention_factor", YarnAttentionFactor(sizes.factor)));
  rope.scale = static_cast<float>(attention);
  ScaleYarn(yarn, rope.inverse_frequency);
  const double extended = std::min(sizes.factor * yarn.original_context, double{kMaxContext});
  config.context_length = std::max(config.context_length, static_cast<int64_t>(extended));
  return absl::OkStatus();
}

absl::Status ReadLongRope(const ConfigJson& parameters, const RopeSizes& sizes, RopeSpec& rope,
                          const ModelConfig& config) {
  const auto divided = [&](const char* key) -> absl::StatusOr<std::vector<float>> {
    ASSIGN_OR_RETURN(const std::vector<double> factors, parameters.Numbers(key));
    std::vector<float> inverse = rope.inverse_frequency;
    if (factors.size() != inverse.size() ||
        !std::all_of(factors.begin(), factors.end(), [](double f) { return f > 0; })) {
      return absl::InvalidArgumentError(absl::StrCat(parameters.Where(key), " must be ",
                                                     inverse.size(), " positive numbers, not ",
                                                     factors.size()));
    }
    for (size_t i = 0; i < inverse.size(); ++i) {
      inverse[i] = static_cast<float>(inverse[i] / factors[i]);
    }
    return inverse;
  };
  ASSIGN_OR_RETURN(rope.long_inverse_frequency, divided("long_factor"));
  ASSIGN_OR_RETURN(rope.inverse_frequency, divided("short_factor"));
  rope.long_beyond = sizes.original;
  const double original = static_cast<double>(sizes.original);
  double factor = static_cast<double>(config.context_length) / original;
  ASSIGN_OR_RETURN(factor, parameters.Number("factor", factor));
  ASSIGN_OR_RETURN(
      const double attention,
      parameters.Number("attention_factor", LongRopeAttentionFactor(factor, original)));
  rope.scale = static_cast<float>(attention);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadJsonCommon(const ConfigJson& json, const JsonDefaults& defaults) {
  RETURN_IF_ERROR(RefuseUnserved(json));
  ModelConfig config;
  ASSIGN_OR_RETURN(config.architecture, json.String("model_type", std::nullopt));
  ASSIGN_OR_RETURN(config.hidden, json.Size("hidden_size", defaults.hidden, kMaxSize));
  ASSIGN_OR_RETURN(config.ffn, json.Size("intermediate_size", defaults.ffn, kMaxSize));
  ASSIGN_OR_RETURN(const int64_t layers, json.Size("num_hidden_layers", defaults.layers, 4096));
  ASSIGN_OR_RETURN(config.heads, json.Size("num_attention_heads", defaults.heads, 65536));
  ASSIGN_OR_RETURN(config.kv_heads, json.Size("num_key_value_heads",
                                              defaults.kv_heads.value_or(config.heads), 65536));
  ASSIGN_OR_RETURN(
      config.head_dim,
      json.Size("head_dim", defaults.head_dim.value_or(config.hidden / config.heads), kMaxHeadDim));
  ASSIGN_OR_RETURN(config.context_length,
                   json.Size("max_position_embeddings", defaults.context, kMaxContext));
  ASSIGN_OR_RETURN(config.vocabulary, json.Size("vocab_size", defaults.vocabulary, kMaxSize));
  ASSIGN_OR_RETURN(const double epsilon, json.Number("rms_norm_eps", defaults.norm_epsilon));
  if (!(epsilon > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(json.Where("rms_norm_eps"), " is ", epsilon, "; it must be above 0"));
  }
  config.norm_epsilon = static_cast<float>(epsilon);
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  config.layers.resize(layers);
  RETURN_IF_ERROR(CheckActivation(json, config));
  return config;
}

absl::StatusOr<RopeSpec> ReadJsonRope(const ConfigJson& json, double default_base,
                                      ModelConfig& config) {
  if (json.Has("rope_parameters")) {
    ASSIGN_OR_RETURN(const ConfigJson parameters, json.Object("rope_parameters"));
    ASSIGN_OR_RETURN(const double base, parameters.Number("rope_theta", default_base));
    return ReadJsonRope(json, parameters, base, config);
  }
  ASSIGN_OR_RETURN(const double base, json.Number("rope_theta", default_base));
  if (!json.Has("rope_scaling")) {
    ASSIGN_OR_RETURN(const ConfigJson plain, ConfigJson::Parse(json.Where("rope_scaling"), "{}"));
    return ReadJsonRope(json, plain, base, config);
  }
  ASSIGN_OR_RETURN(const ConfigJson scaling, json.Object("rope_scaling"));
  return ReadJsonRope(json, scaling, base, config);
}

absl::StatusOr<RopeSpec> ReadJsonRope(const ConfigJson& json, const ConfigJson& parameters,
                                      double base, ModelConfig& config) {
  const char* key = parameters.Has("rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, parameters.String(key, "default"));
  constexpr char kPartial[] = "partial_rotary_factor";
  ASSIGN_OR_RETURN(const double part,
                   (parameters.Has(kPartial) ? parameters : json).Number(kPartial, 1.0));
  RopeSizes sizes;
  sizes.base = base;
  ASSIGN_OR_RETURN(sizes.factor, parameters.Number("factor", 1.0));
  ASSIGN_OR_RETURN(sizes.original, OriginalContext(json, parameters, config));
  const auto rotary = static_cast<int64_t>(part * static_cast<double>(config.head_dim));
  if (!(part > 0) || !(part <= 1) || rotary < 2 || rotary % 2 != 0 || !(base > 1) ||
      !(sizes.factor > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(parameters.Where("rope_theta"), " ", base, ", factor ", sizes.factor, " or ",
                     kPartial, " ", part, " is invalid for heads of ", config.head_dim));
  }
  RopeSpec rope;
  rope.layout = kernels::RopeLayout::kHalves;
  rope.inverse_frequency = InverseFrequencies(base, rotary, type == "linear" ? sizes.factor : 1.0);
  if (type == "llama3") {
    RETURN_IF_ERROR(ReadLlama3(parameters, sizes, rope));
  } else if (type == "yarn") {
    RETURN_IF_ERROR(ReadYarn(parameters, sizes, rope, config));
  } else if (type == "longrope" || type == "su") {
    RETURN_IF_ERROR(ReadLongRope(parameters, sizes, rope, config));
  } else if (type != "default" && type != "linear") {
    return absl::UnimplementedError(
        absl::StrCat(parameters.Where(key), " \"", type,
                     "\" is not served; served are default, linear, llama3, yarn and longrope"));
  }
  return rope;
}

absl::Status ReadLayerTypes(const ConfigJson& json, int64_t window,
                            const std::vector<bool>& slides_by_default, ModelConfig& config) {
  std::vector<std::string> types;
  if (json.Has("layer_types")) {
    ASSIGN_OR_RETURN(types, json.Strings("layer_types"));
    if (types.size() != config.layers.size()) {
      return absl::InvalidArgumentError(absl::StrCat(json.Where("layer_types"), " has ",
                                                     types.size(), " entries for ",
                                                     config.layers.size(), " layers"));
    }
  }
  for (size_t i = 0; i < config.layers.size(); ++i) {
    bool slides = i < slides_by_default.size() && slides_by_default[i];
    if (!types.empty()) {
      slides = types[i] == "sliding_attention";
      if (!slides && types[i] != "full_attention") {
        return absl::UnimplementedError(
            absl::StrCat(json.Where("layer_types"), ": \"", types[i],
                         "\" is not served; served are full_attention and sliding_attention"));
      }
    }
    if (slides && window == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(json.Where("sliding_window"), " is missing, but layer ", i, " slides"));
    }
    config.layers[i].window = slides ? window : 0;
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
