// SPDX-License-Identifier: Apache-2.0
// Mistral 7B, Nemo and Small: Llama with a sliding window (the first 7B), or with heads whose size
// is not hidden / heads (Nemo, Small). GGUF files store it as llama.
#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/families/json_common.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxWindow = 1 << 30;

absl::StatusOr<ModelConfig> FromJson(const ConfigJson& json) {
  JsonDefaults defaults;
  defaults.kv_heads = 8;
  ASSIGN_OR_RETURN(ModelConfig config, ReadJsonCommon(json, defaults));
  ASSIGN_OR_RETURN(RopeSpec rope, ReadJsonRope(json, 10000.0, config));
  config.ropes = {std::move(rope)};
  int64_t window = 0;
  if (json.Has("sliding_window")) {
    ASSIGN_OR_RETURN(window, json.Size("sliding_window", std::nullopt, kMaxWindow));
  }
  const std::vector<bool> slides(config.layers.size(), window > 0);
  RETURN_IF_ERROR(ReadLayerTypes(json, window, slides, config));
  return config;
}

}  // namespace

const Family kMistral = {"llama", nullptr, "mistral", FromJson, {}};

}  // namespace rempart::worker
