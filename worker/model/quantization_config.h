// SPDX-License-Identifier: Apache-2.0
// What the config.json of a folder says about how its weights are quantised: quantization_config,
// as transformers ("fp8", "awq", "gptq") and compressed-tensors write it. Which modules are
// quantised is not read: their tensors say it, and a module that is left as it was has a plain
// weight.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "worker/model/config_json.h"
#include "worker/model/quantized_matrix.h"

namespace rempart::worker {

struct QuantizationConfig {
  bool fp8 = false;
  bool fp8_blocks = false;  // scales may be those of blocks of 128 x 128
  bool int8 = false;
  bool int8_activations = false;  // made for products of int8 by int8
  std::optional<INT4Layout> int4 = std::nullopt;
  int64_t group = 0;      // of int4; 0: all columns are one
  int zero_offset = 0;    // of int4
  bool has_zeros = true;  // of int4; false: all are 8
};

// `config` is quantization_config. Unimplemented names the field that is not served, and what to
// use instead.
absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const ConfigJson& config);

}  // namespace rempart::worker
