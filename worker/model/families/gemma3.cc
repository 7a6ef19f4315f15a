// SPDX-License-Identifier: Apache-2.0
// Gemma 3, text: five layers with a sliding window and a local rotation to one that sees all. Its
// norms scale by 1 + w: GGUF files hold the sum, model folders w.
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/families/gguf_common.h"
#include "worker/model/families/json_common.h"
#include "worker/model/rope.h"

namespace rempart::worker {
namespace {

constexpr int64_t kPattern = 6;  // every sixth layer is global
constexpr double kGlobalBase = 1000000.0;
constexpr double kLocalBase = 10000.0;
constexpr int64_t kMaxWindow = 1 << 30;
// The 27B model scales queries by hidden / heads instead of by the head dimension.
constexpr size_t kLayersOf27B = 62;

constexpr TensorName kNames[] = {{"post_attention_layernorm", "post_attention_norm"},
                                 {"pre_feedforward_layernorm", "ffn_norm"},
                                 {"post_feedforward_layernorm", "post_ffw_norm"}};

void SetArithmetic(ModelConfig& config) {
  config.activation = Activation::kGeluTanh;
  config.qk_norm = true;
  config.post_norms = true;
  config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
}

// Without a scaling.type the factor counts, as in llama.cpp; the local rotation is never scaled.
absl::Status ReadGgufRopes(const GgufFile& file, ModelConfig& config) {
  ASSIGN_OR_RETURN(const double base, file.metadata.Float("gemma3.rope.freq_base", kGlobalBase));
  ASSIGN_OR_RETURN(const double local,
                   file.metadata.Float("gemma3.rope.freq_base_swa", kLocalBase));
  ASSIGN_OR_RETURN(const absl::string_view type,
                   file.metadata.String("gemma3.rope.scaling.type", "linear"));
  ASSIGN_OR_RETURN(double factor, file.metadata.Float("gemma3.rope.scaling.factor", 1.0));
  if (type != "linear" && type != "none") {
    return absl::UnimplementedError(absl::StrCat("gemma3.rope.scaling.type \"", type,
                                                 "\" is not served; served are none and linear"));
  }
  if (!(base > 1) || !(local > 1) || !(factor > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gemma3.rope.*: freq_base ", base, ", freq_base_swa ", local, " or scaling.factor ", factor,
        " is invalid; bases must be above 1, the factor above 0"));
  }
  if (type == "none") factor = 1.0;
  config.ropes.resize(2);
  config.ropes[0].inverse_frequency = InverseFrequencies(base, config.head_dim, factor);
  config.ropes[1].inverse_frequency = InverseFrequencies(local, config.head_dim, 1.0);
  for (RopeSpec& rope : config.ropes) rope.layout = kernels::RopeLayout::kHalves;
  return absl::OkStatus();
}

// attention.sliding_window_pattern: a flag for each layer, or the period at whose end a layer sees
// everything (1: all do; 0: none does).
absl::StatusOr<std::vector<bool>> SlidingLayers(const GgufFile& file, size_t layers) {
  constexpr char kKey[] = "gemma3.attention.sliding_window_pattern";
  std::vector<bool> slides(layers);
  const absl::StatusOr<uint64_t> period = file.metadata.Uint(kKey, kPattern);
  if (period.ok()) {
    for (size_t i = 0; i < layers; ++i) slides[i] = *period == 0 || (i + 1) % *period != 0;
    return slides;
  }
  const absl::StatusOr<std::vector<int64_t>> flags = file.metadata.Ints(kKey);
  if (!flags.ok() || flags->size() != layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        kKey, flags.ok() ? absl::StrCat(" has ", flags->size(), " entries") : "",
        " must be a whole number, or an array of a flag for each of the ", layers, " layers"));
  }
  for (size_t i = 0; i < layers; ++i) slides[i] = (*flags)[i] != 0;
  return slides;
}

absl::StatusOr<ModelConfig> FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadGgufCommon(file, "gemma3"));
  SetArithmetic(config);
  if (config.layers.size() == kLayersOf27B) {
    config.attention_scale =
        1.0f / std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.heads));
  }
  ASSIGN_OR_RETURN(const double logit_cap,
                   file.metadata.Float("gemma3.final_logit_softcapping", 0.0));
  if (!(logit_cap >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("gemma3.final_logit_softcapping is ", logit_cap,
                                                   "; it must be 0 (none) or above"));
  }
  config.logit_softcap = static_cast<float>(logit_cap);
  RETURN_IF_ERROR(ReadGgufRopes(file, config));
  ASSIGN_OR_RETURN(const int64_t window, ReadGgufWindow(file, config));
  if (window == 0) return config;  // all layers see everything
  ASSIGN_OR_RETURN(const std::vector<bool> slides, SlidingLayers(file, config.layers.size()));
  for (size_t i = 0; i < slides.size(); ++i) {
    if (!slides[i]) continue;
    config.layers[i].window = window;
    config.layers[i].rope = 1;
  }
  return config;
}

// rope_parameters of both kinds of layer, or the older rope_theta, rope_scaling and
// rope_local_base_freq.
absl::Status ReadRopes(const ConfigJson& json, ModelConfig& config) {
  config.ropes.resize(2);
  if (json.Has("rope_parameters")) {
    ASSIGN_OR_RETURN(const ConfigJson both, json.Object("rope_parameters"));
    ASSIGN_OR_RETURN(const ConfigJson global, both.Object("full_attention"));
    ASSIGN_OR_RETURN(const ConfigJson local, both.Object("sliding_attention"));
    ASSIGN_OR_RETURN(const double global_base, global.Number("rope_theta", kGlobalBase));
    ASSIGN_OR_RETURN(const double local_base, local.Number("rope_theta", kLocalBase));
    ASSIGN_OR_RETURN(config.ropes[0], ReadJsonRope(json, global, global_base, config));
    ASSIGN_OR_RETURN(config.ropes[1], ReadJsonRope(json, local, local_base, config));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config.ropes[0], ReadJsonRope(json, kGlobalBase, config));
  ASSIGN_OR_RETURN(const double local_base, json.Number("rope_local_base_freq", kLocalBase));
  config.ropes[1].inverse_frequency = InverseFrequencies(local_base, config.head_dim, 1.0);
  config.ropes[1].layout = kernels::RopeLayout::kHalves;
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> FromJson(const ConfigJson& json) {
  JsonDefaults defaults;
  defaults.hidden = 2304;
  defaults.ffn = 9216;
  defaults.layers = 26;
  defaults.heads = 8;
  defaults.kv_heads = 4;
  defaults.head_dim = 256;
  defaults.context = 131072;
  defaults.vocabulary = 262208;
  ASSIGN_OR_RETURN(ModelConfig config, ReadJsonCommon(json, defaults));
  SetArithmetic(config);
  config.norm_offset = 1.0f;
  ASSIGN_OR_RETURN(config.qkv_bias, json.Bool("attention_bias", false));
  config.output_bias = config.qkv_bias;
  ASSIGN_OR_RETURN(const double scalar, json.Number("query_pre_attn_scalar", 256.0));
  ASSIGN_OR_RETURN(const double score_cap, json.Number("attn_logit_softcapping", 0.0));
  ASSIGN_OR_RETURN(const double logit_cap, json.Number("final_logit_softcapping", 0.0));
  if (!(scalar > 0) || score_cap < 0 || logit_cap < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(json.Where("query_pre_attn_scalar"), " or a softcap is invalid"));
  }
  config.attention_scale = static_cast<float>(1.0 / std::sqrt(scalar));
  config.attention_softcap = static_cast<float>(score_cap);
  config.logit_softcap = static_cast<float>(logit_cap);
  RETURN_IF_ERROR(ReadRopes(json, config));
  const char* key =
      json.Has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
  ASSIGN_OR_RETURN(const int64_t pattern, json.Size(key, kPattern, 4096));
  ASSIGN_OR_RETURN(const int64_t window, json.Size("sliding_window", 4096, kMaxWindow));
  std::vector<bool> slides(config.layers.size());
  for (size_t i = 0; i < slides.size(); ++i) slides[i] = (i + 1) % pattern != 0;
  RETURN_IF_ERROR(ReadLayerTypes(json, window, slides, config));
  for (LayerSpec& layer : config.layers) layer.rope = layer.window > 0 ? 1 : 0;
  return config;
}

}  // namespace

const Family kGemma3 = {"gemma3", FromGguf, "gemma3_text", FromJson, kNames};

}  // namespace rempart::worker
