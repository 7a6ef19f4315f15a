// SPDX-License-Identifier: Apache-2.0
// Llama 2 and 3 and what shares their shape (SmolLM2, TinyLlama); converters to GGUF store Mistral
// under this name too. In GGUF files queries and keys are permuted for interleaved rotation; in
// model folders they are not.
#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/families/gguf_common.h"
#include "worker/model/families/json_common.h"

namespace rempart::worker {
namespace {

absl::StatusOr<ModelConfig> FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadGgufCommon(file, "llama"));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadGgufRope(file, kernels::RopeLayout::kInterleaved, config));
  config.ropes = {std::move(rope)};
  ASSIGN_OR_RETURN(const int64_t window, ReadGgufWindow(file, config));
  for (LayerSpec& layer : config.layers) layer.window = window;
  return config;
}

absl::StatusOr<ModelConfig> FromJson(const ConfigJson& json) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadJsonCommon(json, {}));
  ASSIGN_OR_RETURN(config.qkv_bias, json.Bool("attention_bias", false));
  config.output_bias = config.qkv_bias;
  ASSIGN_OR_RETURN(config.ffn_bias, json.Bool("mlp_bias", false));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadJsonRope(json, 10000.0, config));
  config.ropes = {std::move(rope)};
  return config;
}

}  // namespace

const Family kLlama = {"llama", FromGguf, "llama", FromJson, {}};

}  // namespace rempart::worker
