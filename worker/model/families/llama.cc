// SPDX-License-Identifier: Apache-2.0
// Llama 2 and 3, and what converters store as "llama" (SmolLM2, TinyLlama, Mistral). Queries and
// keys of these files are permuted for interleaved rotation.
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/families/families.h"

namespace rempart::worker {

absl::StatusOr<ModelConfig> ReadLlama(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadCommon(file, "llama"));
  if (file.metadata.Has("llama.expert_count")) {
    ASSIGN_OR_RETURN(const uint64_t experts, file.metadata.Uint("llama.expert_count"));
    if (experts > 0) {
      return absl::UnimplementedError("llama.expert_count: mixture of experts is not served yet");
    }
  }
  ASSIGN_OR_RETURN(const double base, file.metadata.Float("llama.rope.freq_base", 10000.0));
  ASSIGN_OR_RETURN(const uint64_t rotary,
                   file.metadata.Uint("llama.rope.dimension_count", config.head_dim));
  ASSIGN_OR_RETURN(const absl::string_view scaling,
                   file.metadata.String("llama.rope.scaling.type", "none"));
  double factor = 1.0;
  if (scaling == "linear") {
    ASSIGN_OR_RETURN(factor, file.metadata.Float("llama.rope.scaling.factor"));
  } else if (scaling != "none") {
    return absl::UnimplementedError(
        absl::StrCat("llama.rope.scaling.type \"", scaling, "\" is not served yet"));
  }
  if (rotary == 0 || rotary % 2 != 0 || static_cast<int64_t>(rotary) > config.head_dim ||
      !(factor > 0)) {
    return absl::InvalidArgumentError("llama.rope.*: dimension_count or scaling.factor is invalid");
  }
  RopeSpec rope;
  rope.inverse_frequency = InverseFrequencies(base, static_cast<int64_t>(rotary), factor);
  // Llama 3.1's scaling, as a factor for each frequency.
  const auto factors = file.tensors.find("rope_freqs.weight");
  if (factors != file.tensors.end()) {
    const TensorView& tensor = factors->second;
    if (tensor.type != kernels::DType::kF32 ||
        tensor.cols() != static_cast<int64_t>(rope.inverse_frequency.size())) {
      return absl::InvalidArgumentError(absl::StrCat("rope_freqs.weight must be F32 with ",
                                                     rope.inverse_frequency.size(),
                                                     " elements, not ", tensor.ShapeText()));
    }
    const auto* values = reinterpret_cast<const float*>(tensor.data);
    for (size_t i = 0; i < rope.inverse_frequency.size(); ++i) {
      rope.inverse_frequency[i] /= values[i];
    }
  }
  config.ropes = {rope};
  return config;
}

}  // namespace rempart::worker
