// SPDX-License-Identifier: Apache-2.0
// Any bytes parse or are refused; what parses has its tensors inside the bytes, and what makes up a
// quantised matrix, in whichever layout, can be read from its first to its last row. The same bytes
// as a config.json give a configuration within the kernels' limits, or are refused.
#include <cstdint>
#include <vector>

#include "common/check.h"
#include "worker/model/families/families.h"
#include "worker/model/gather_quantized.h"
#include "worker/model/safetensors.h"

namespace {

using namespace rempart::worker;

void ReadQuantized(const QuantizedMatrix& matrix) {
  constexpr int64_t kMost = 1 << 22;
  if (matrix.rows * matrix.cols > kMost) return;
  const QuantizedWindow whole = {matrix, 0, matrix.rows, 0, matrix.cols};
  const int64_t row_bytes = rempart::kernels::RowBytes(ExpandedType(matrix), matrix.cols);
  std::vector<uint8_t> expanded(matrix.rows * row_bytes);
  Expand(whole, expanded.data());
  if (matrix.scheme != QuantizedScheme::kINT4Groups) return;
  PackNibbles(whole, expanded.data());
  std::vector<uint16_t> scales(matrix.rows * (matrix.cols / matrix.group));
  GroupScales(whole, scales.data());
  std::vector<uint8_t> zeros(scales.size());
  GroupZeros(whole, zeros.data());
}

void GatherInEveryLayout(const TensorMap& tensors) {
  std::vector<QuantizationConfig> configs = {{.fp8 = true, .fp8_blocks = true, .int8 = true}};
  for (const INT4Layout layout : {INT4Layout::kAwq, INT4Layout::kGptq, INT4Layout::kPacked}) {
    for (const int64_t group : {0, 32}) {
      configs.push_back({.int4 = layout, .group = group, .zero_offset = group == 0 ? 0 : 1});
    }
  }
  configs.push_back({.int4 = INT4Layout::kPacked, .group = 32, .has_zeros = false});
  for (const QuantizationConfig& config : configs) {
    TensorMap gathered = tensors;
    const absl::Status status = GatherQuantized(config, gathered);
    if (!status.ok()) {
      CHECK(!status.message().empty());
      continue;
    }
    for (const auto& [name, tensor] : gathered) {
      if (tensor.quantized != nullptr) ReadQuantized(*tensor.quantized);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tensors = ParseSafetensors("fuzz", absl::MakeConstSpan(data, size));
  if (tensors.ok()) {
    for (const auto& [name, tensor] : *tensors) {
      CHECK(tensor.data >= data && tensor.data + tensor.bytes <= data + size) << name;
    }
    GatherInEveryLayout(*tensors);
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
