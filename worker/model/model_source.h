// SPDX-License-Identifier: Apache-2.0
// A model as it lies on disk, opened and validated: a GGUF file, in one piece or in parts of which
// the first is named, or a folder in Hugging Face layout (config.json, *.safetensors in one piece
// or in shards). Both end as the same: a configuration, and tensors by their GGUF names. Files are
// mapped, so that a process reads only what it computes with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"
#include "worker/model/model_config.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

struct ModelSource {
  std::string path;
  bool is_folder = false;
  std::vector<MappedFile> files;  // that `tensors` view
  GgufMetadata metadata;          // of a GGUF file, or its first part; views into it
  TensorMap tensors;
  ModelConfig config;

  int64_t bytes() const;  // of `files`
};

// Every message begins with the path of the file at fault, and says what to do.
absl::StatusOr<ModelSource> OpenModel(const std::string& path);

// Names the file in an error about its content, where it does not yet.
absl::Status About(const std::string& path, const absl::Status& status);

bool IsFolder(const std::string& path);

// The paths of the files that make up a model: a GGUF file and its further parts, or those of a
// folder, sorted by name: *.safetensors, *.json, *.jinja and *.model.
absl::StatusOr<std::vector<std::string>> ModelFilesOf(const std::string& path);

// The content of a small file of a folder. NotFound when there is none, InvalidArgument above
// `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes);

}  // namespace rempart::worker
