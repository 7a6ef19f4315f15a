// SPDX-License-Identifier: Apache-2.0
// Any bytes parse or are refused; what parses has its tensors inside the bytes. The same bytes as a
// config.json give a configuration within the kernels' limits, or are refused.
#include <cstdint>

#include "common/check.h"
#include "worker/model/families/families.h"
#include "worker/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rempart::worker;
  const auto tensors = ParseSafetensors("fuzz", absl::MakeConstSpan(data, size));
  if (tensors.ok()) {
    for (const auto& [name, tensor] : *tensors) {
      CHECK(tensor.data >= data && tensor.data + tensor.bytes <= data + size) << name;
    }
  } else {
    CHECK(!tensors.status().message().empty());
  }
  const auto json =
      ConfigJson::Parse("fuzz", absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!json.ok()) return 0;
  TensorMap none;
  const auto config = ReadModelConfig(*json, none);
  if (!config.ok()) {
    CHECK(!config.status().message().empty());
    return 0;
  }
  CHECK(config->head_dim % 8 == 0 && config->heads % config->kv_heads == 0);
  for (const LayerSpec& layer : config->layers) {
    CHECK(layer.rope >= 0 && static_cast<size_t>(layer.rope) < config->ropes.size());
  }
  return 0;
}
