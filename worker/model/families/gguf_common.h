// SPDX-License-Identifier: Apache-2.0
// What all families spell alike in the metadata of GGUF files, under "<architecture>.".
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/model/gguf.h"
#include "worker/model/model_config.h"

namespace rempart::worker {

// Sizes, norms and biases. Unimplemented for a mixture of experts.
absl::StatusOr<ModelConfig> ReadGgufCommon(const GgufFile& file, const std::string& architecture);

// rope.* with its scalings (linear, YaRN), and the factors that some files carry as tensors (Llama
// 3.1, LongRoPE). Raises config.context_length where YaRN extends it.
absl::StatusOr<RopeSpec> ReadGgufRope(const GgufFile& file, kernels::RopeLayout layout,
                                      ModelConfig& config);

// attention.sliding_window; 0 when the file has none.
absl::StatusOr<int64_t> ReadGgufWindow(const GgufFile& file, const ModelConfig& config);

}  // namespace rempart::worker
