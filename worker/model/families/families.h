// SPDX-License-Identifier: Apache-2.0
// Which families are served, and from which of the two formats. A family is one file: a reader of
// its configuration per format and, where they differ from the common ones, the names of its
// tensors. docs/howto/add_a_model_family.md tells how to add one.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/model/config_json.h"
#include "worker/model/gguf.h"
#include "worker/model/model_config.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

// What a tensor of a layer is called in a model folder, after "model.layers.N.", and in GGUF files,
// after "blk.N."; both without ".weight" and ".bias".
struct TensorName {
  absl::string_view folder;
  absl::string_view gguf;
};

struct Family {
  absl::string_view name;                                     // architecture in GGUF files
  absl::StatusOr<ModelConfig> (*from_gguf)(const GgufFile&);  // null: stored as another family
  absl::string_view model_type;                               // in config.json
  absl::StatusOr<ModelConfig> (*from_json)(const ConfigJson&);
  absl::Span<const TensorName> names;  // that differ from those of Llama
};

extern const Family kLlama, kMistral, kQwen2, kQwen3, kGemma3, kPhi3;

// By general.architecture. Unimplemented for a family that is not served, naming those that are.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file);

// By model_type of `config`, the config.json of a model folder. Renames `tensors` from the folder's
// names to those of GGUF files, drops what does not belong to the text model, and makes one of the
// tensors of each quantised matrix. Unimplemented for a family or a field that is not served.
absl::StatusOr<ModelConfig> ReadModelConfig(const ConfigJson& config, TensorMap& tensors);

}  // namespace rempart::worker
