// SPDX-License-Identifier: Apache-2.0
// Models in several GGUF files, named NAME-00001-of-00003.gguf and so on, as llama.cpp's
// gguf-split writes them: all metadata is in the first one, each tensor in one of them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rempart {

// The paths of all parts in their order, when `path` is named as one of several; else `path` alone.
// InvalidArgument when it is named as another part than the first, with what to name instead.
absl::StatusOr<std::vector<std::string>> SplitFilesOf(const std::string& path);

}  // namespace rempart
