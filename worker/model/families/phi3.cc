// SPDX-License-Identifier: Apache-2.0
// Phi 3, 3.5 and 4 (all call themselves phi3): query, key and value in one tensor, gate and up in
// another; the mini ones extend their context by LongRoPE, and Phi 4 mini rotates a part of each
// head.
#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/families/gguf_common.h"
#include "worker/model/families/json_common.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxWindow = 1 << 30;
constexpr TensorName kNames[] = {{"self_attn.qkv_proj", "attn_qkv"},
                                 {"mlp.gate_up_proj", "ffn_up"}};

absl::StatusOr<ModelConfig> FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadGgufCommon(file, "phi3"));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadGgufRope(file, kernels::RopeLayout::kHalves, config));
  config.ropes = {std::move(rope)};
  ASSIGN_OR_RETURN(const int64_t window, ReadGgufWindow(file, config));
  for (LayerSpec& layer : config.layers) layer.window = window;
  return config;
}

absl::StatusOr<ModelConfig> FromJson(const ConfigJson& json) {
  JsonDefaults defaults;
  defaults.norm_epsilon = 1e-5;
  ASSIGN_OR_RETURN(ModelConfig config, ReadJsonCommon(json, defaults));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadJsonRope(json, 10000.0, config));
  config.ropes = {std::move(rope)};
  if (json.Has("sliding_window")) {
    ASSIGN_OR_RETURN(const int64_t window, json.Size("sliding_window", std::nullopt, kMaxWindow));
    for (LayerSpec& layer : config.layers) layer.window = window;
  }
  return config;
}

}  // namespace

const Family kPhi3 = {"phi3", FromGguf, "phi3", FromJson, kNames};

}  // namespace rempart::worker
