// SPDX-License-Identifier: Apache-2.0
// Gemma 3, text: five layers with a sliding window and a local rotation to one that sees all. The
// (1 + w) of its norms is already in the file.
#include <cmath>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "worker/model/families/families.h"

namespace rempart::worker {
namespace {

constexpr int64_t kPattern = 6;  // every sixth layer is global
constexpr double kLocalBase = 10000.0;
// The 27B model scales queries by hidden / heads instead of by the head dimension.
constexpr size_t kLayersOf27B = 62;

}  // namespace

absl::StatusOr<ModelConfig> ReadGemma3(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadCommon(file, "gemma3"));
  config.activation = Activation::kGeluTanh;
  config.qk_norm = true;
  config.post_norms = true;
  config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  if (config.layers.size() == kLayersOf27B) {
    config.attention_scale =
        1.0f / std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.heads));
  }
  ASSIGN_OR_RETURN(const double base, file.metadata.Float("gemma3.rope.freq_base", 1000000.0));
  ASSIGN_OR_RETURN(const double factor, file.metadata.Float("gemma3.rope.scaling.factor", 1.0));
  ASSIGN_OR_RETURN(const uint64_t window, file.metadata.Uint("gemma3.attention.sliding_window"));
  if (!(factor > 0) || window == 0 || window > (1u << 30)) {
    return absl::InvalidArgumentError("gemma3: the rope factor or the sliding window is invalid");
  }
  const auto layout = kernels::RopeLayout::kHalves;
  config.ropes = {{InverseFrequencies(base, config.head_dim, factor), layout},
                  {InverseFrequencies(kLocalBase, config.head_dim, 1.0), layout}};
  for (size_t i = 0; i < config.layers.size(); ++i) {
    if (i % kPattern == kPattern - 1) continue;
    config.layers[i].window = static_cast<int64_t>(window);
    config.layers[i].rope = 1;
  }
  return config;
}

}  // namespace rempart::worker
