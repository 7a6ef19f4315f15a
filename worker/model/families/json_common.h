// SPDX-License-Identifier: Apache-2.0
// What all families spell alike in the config.json of a model folder, as transformers writes it.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "worker/model/config_json.h"
#include "worker/model/model_config.h"

namespace rempart::worker {

// Values that a family's config.json may leave out because its class has them as defaults.
struct JsonDefaults {
  std::optional<int64_t> hidden, ffn, layers, heads, kv_heads, head_dim, context, vocabulary;
  double norm_epsilon = 1e-6;
};

// Sizes and norms. Unimplemented for fields that change the computation in a way that is not
// served, naming them: experts, other activations, encoders.
absl::StatusOr<ModelConfig> ReadJsonCommon(const ConfigJson& json, const JsonDefaults& defaults);

// rope_parameters, or rope_theta and rope_scaling: plain, linear, llama3, yarn, longrope, over a
// part of the head where partial_rotary_factor says so. Raises config.context_length where YaRN
// extends it. `parameters`: of one kind of layer, where a family has several.
absl::StatusOr<RopeSpec> ReadJsonRope(const ConfigJson& json, double default_base,
                                      ModelConfig& config);
absl::StatusOr<RopeSpec> ReadJsonRope(const ConfigJson& json, const ConfigJson& parameters,
                                      double base, ModelConfig& config);

// Sets the window of the layers that slide: those that layer_types calls so or, without
// layer_types, those from `first` on for which `slides` is not zero.
absl::Status ReadLayerTypes(const ConfigJson& json, int64_t window,
                            const std::vector<bool>& slides_by_default, ModelConfig& config);

}  // namespace rempart::worker
