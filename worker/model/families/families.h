// SPDX-License-Identifier: Apache-2.0
// One reader per family; docs/howto/add_a_model_family.md tells how to add one.
#pragma once

#include "absl/status/statusor.h"
#include "worker/model/gguf.h"
#include "worker/model/model_config.h"

namespace rempart::worker {

absl::StatusOr<ModelConfig> ReadLlama(const GgufFile& file);
absl::StatusOr<ModelConfig> ReadGemma3(const GgufFile& file);

// By general.architecture. Unimplemented for a family that is not served, naming those that are.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file);

// Sizes that every family spells alike, under "<architecture>.".
absl::StatusOr<ModelConfig> ReadCommon(const GgufFile& file, const std::string& architecture);
// base^(-2i / rotary_dim) / factor.
std::vector<float> InverseFrequencies(double base, int64_t rotary_dim, double factor);

}  // namespace rempart::worker
