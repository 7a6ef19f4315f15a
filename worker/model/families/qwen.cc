// SPDX-License-Identifier: Apache-2.0
// Qwen 2 and 2.5 (biases of query, key and value) and Qwen 3 (norms of query and key heads
// instead).
#include <algorithm>

#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/families/gguf_common.h"
#include "worker/model/families/json_common.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxWindow = 1 << 30;

absl::StatusOr<ModelConfig> CommonGguf(const GgufFile& file, const char* architecture) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadGgufCommon(file, architecture));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadGgufRope(file, kernels::RopeLayout::kHalves, config));
  config.ropes = {std::move(rope)};
  return config;
}

absl::StatusOr<ModelConfig> Qwen2FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, CommonGguf(file, "qwen2"));
  config.qkv_bias = true;
  return config;
}

absl::StatusOr<ModelConfig> Qwen3FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, CommonGguf(file, "qwen3"));
  config.qk_norm = true;
  return config;
}

absl::StatusOr<ModelConfig> CommonJson(const ConfigJson& json, const JsonDefaults& defaults) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadJsonCommon(json, defaults));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadJsonRope(json, 10000.0, config));
  config.ropes = {std::move(rope)};
  ASSIGN_OR_RETURN(const bool slides, json.Bool("use_sliding_window", false));
  if (!slides) return config;
  ASSIGN_OR_RETURN(const int64_t window, json.Size("sliding_window", 4096, kMaxWindow));
  // The first max_window_layers layers see everything.
  ASSIGN_OR_RETURN(const double full, json.Number("max_window_layers", 28.0));
  std::vector<bool> sliding(config.layers.size());
  for (size_t i = 0; i < sliding.size(); ++i) sliding[i] = static_cast<double>(i) >= full;
  RETURN_IF_ERROR(ReadLayerTypes(json, window, sliding, config));
  return config;
}

absl::StatusOr<ModelConfig> Qwen2FromJson(const ConfigJson& json) {
  ASSIGN_OR_RETURN(ModelConfig config, CommonJson(json, {}));
  config.qkv_bias = true;
  return config;
}

absl::StatusOr<ModelConfig> Qwen3FromJson(const ConfigJson& json) {
  JsonDefaults defaults;
  defaults.head_dim = 128;
  ASSIGN_OR_RETURN(ModelConfig config, CommonJson(json, defaults));
  config.qk_norm = true;
  ASSIGN_OR_RETURN(config.qkv_bias, json.Bool("attention_bias", false));
  config.output_bias = config.qkv_bias;
  return config;
}

}  // namespace

const Family kQwen2 = {"qwen2", Qwen2FromGguf, "qwen2", Qwen2FromJson, {}};
const Family kQwen3 = {"qwen3", Qwen3FromGguf, "qwen3", Qwen3FromJson, {}};

}  // namespace rempart::worker
