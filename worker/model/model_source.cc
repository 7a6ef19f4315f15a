// SPDX-License-Identifier: Apache-2.0
#include "worker/model/model_source.h"

#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/split_files.h"
#include "common/status_macros.h"
#include "worker/model/config_json.h"
#include "worker/model/families/families.h"
#include "worker/model/safetensors.h"

namespace rempart::worker {
namespace {

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kWhole[] = "model.safetensors";
constexpr int64_t kMaxConfigBytes = 4 << 20;
constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxFolderEntries = 100000;

absl::StatusOr<std::vector<std::string>> FilesOf(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    if (names.size() == kMaxFolderEntries) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": more than ", kMaxFolderEntries, " files; name a model's folder"));
    }
    std::error_code ignored;
    if (it->is_regular_file(ignored)) names.push_back(it->path().filename().string());
  }
  if (error) {
    return absl::NotFoundError(absl::StrCat(folder, ": ", error.message(),
                                            "; check the path of the model and its volume"));
  }
  std::sort(names.begin(), names.end());
  return names;
}

// What to say of a folder without safetensors files.
absl::Status NoWeights(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, FilesOf(folder));
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".gguf")) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": has no ", kWhole, ", but ", name, ": name that file instead"));
    }
    if (absl::EndsWith(name, ".bin") || absl::EndsWith(name, ".pth") ||
        absl::EndsWith(name, ".pt")) {
      return absl::InvalidArgumentError(absl::StrCat(
          folder, ": ", name, " is a pickle file, which can run code and is never read; use a ",
          "version of the model with safetensors files"));
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(folder, ": has neither ", kWhole, " nor ", kIndex,
                                                 "; name a folder in Hugging Face layout, or a "
                                                 ".gguf file"));
}

using WeightMap = std::map<std::string, std::set<std::string>>;  // shard to its tensors

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxIndexBytes));
  simdjson::dom::parser parser;
  simdjson::dom::object map;
  if (parser.parse(text)["weight_map"].get(map) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": weight_map is missing or not an object; download it again"));
  }
  WeightMap shards;
  for (const auto& [key, value] : map) {
    std::string_view file;
    const bool is_text = value.get(file) == simdjson::SUCCESS;
    const absl::string_view name(file.data(), file.size());
    // A plain name: nothing outside the folder is opened.
    if (!is_text || !absl::EndsWith(name, ".safetensors") || absl::StrContains(name, '/') ||
        absl::StrContains(name, '\0')) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map.", std::string(key),
                       " must be the name of a .safetensors file in the same folder"));
    }
    shards[std::string(name)].insert(std::string(key));
    if (shards.size() > kMaxShards) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": more than ", kMaxShards, " shards"));
    }
  }
  return shards;
}

absl::Status AddShard(const std::string& path, const std::set<std::string>& expected,
                      ModelSource& source) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(TensorMap tensors, ParseSafetensors(path, file.bytes()));
  for (const std::string& name : expected) {
    if (tensors.contains(name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(path, ": the tensor ", name,
                                                   " is missing, which ", kIndex,
                                                   " says is here; download the model again"));
  }
  for (auto& [name, tensor] : tensors) {
    if (!source.tensors.try_emplace(name, std::move(tensor)).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": the tensor ", name,
                                                     " is in another shard too; download the "
                                                     "model again"));
    }
  }
  source.files.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<ModelSource> OpenFolder(const std::string& folder) {
  ModelSource source;
  source.path = folder;
  source.is_folder = true;
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(folder + "/config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(const ConfigJson config, ConfigJson::Parse(folder + "/config.json", text));
  std::error_code ignored;
  WeightMap shards;
  if (std::filesystem::exists(folder + "/" + kIndex, ignored)) {
    ASSIGN_OR_RETURN(shards, ReadIndex(folder + "/" + kIndex));
  } else if (std::filesystem::exists(folder + "/" + kWhole, ignored)) {
    shards[kWhole] = {};
  } else {
    return NoWeights(folder);
  }
  for (const auto& [name, tensors] : shards) {
    RETURN_IF_ERROR(AddShard(folder + "/" + name, tensors, source));
  }
  absl::StatusOr<ModelConfig> model = ReadModelConfig(config, source.tensors);
  if (!model.ok()) return About(folder, model.status());
  source.config = *std::move(model);
  return source;
}

// The part's own word of which it is must be that of its name.
absl::Status CheckPart(const std::string& path, const GgufFile& file, size_t index, size_t count) {
  const absl::StatusOr<uint64_t> number = file.metadata.Uint("split.no", 0);
  if (!number.ok()) return About(path, number.status());
  const absl::StatusOr<uint64_t> of = file.metadata.Uint("split.count", 1);
  if (!of.ok()) return About(path, of.status());
  if (*number == index && std::max<uint64_t>(*of, 1) == count) return absl::OkStatus();
  if (count == 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: split.no is %d and split.count %d: parts of a model are named "
                        "NAME-00001-of-%05d.gguf and so on; name them so, and the first one here",
                        path, *number, *of, *of));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": is named as part ", index + 1, " of ", count, ", but split.no is ",
                   *number, " and split.count ", *of, ": download the model again"));
}

// Adds the tensors of a further part.
absl::Status AddPart(const std::string& path, size_t index, size_t count, ModelSource& source,
                     GgufFile& whole) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (absl::IsNotFound(file.status())) {
    return absl::NotFoundError(absl::StrCat(std::string(file.status().message()), ": part ",
                                            index + 1, " of ", count,
                                            " of the model is missing; put it beside the others"));
  }
  RETURN_IF_ERROR(file.status());
  ASSIGN_OR_RETURN(GgufFile part, ParseGguf(path, file->bytes()));
  RETURN_IF_ERROR(CheckPart(path, part, index, count));
  for (auto& [name, tensor] : part.tensors) {
    if (!whole.tensors.try_emplace(name, std::move(tensor)).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": the tensor ", name, " is in another part too; download the model again"));
    }
  }
  source.files.push_back(*std::move(file));
  return absl::OkStatus();
}

absl::Status CheckTensorCount(const std::string& path, const GgufFile& whole) {
  const absl::StatusOr<uint64_t> expected =
      whole.metadata.Uint("split.tensors.count", whole.tensors.size());
  if (!expected.ok()) return About(path, expected.status());
  if (*expected == whole.tensors.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path, ": split.tensors.count is ", *expected,
                                                 ", but all parts have ", whole.tensors.size(),
                                                 " tensors: download the model again"));
}

absl::StatusOr<ModelSource> OpenGguf(const std::string& path) {
  ModelSource source;
  source.path = path;
  ASSIGN_OR_RETURN(const std::vector<std::string> paths, SplitFilesOf(path));
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(GgufFile gguf, ParseGguf(path, file.bytes()));
  RETURN_IF_ERROR(CheckPart(path, gguf, 0, paths.size()));
  source.files.push_back(std::move(file));
  for (size_t i = 1; i < paths.size(); ++i) {
    RETURN_IF_ERROR(AddPart(paths[i], i, paths.size(), source, gguf));
  }
  if (paths.size() > 1) RETURN_IF_ERROR(CheckTensorCount(path, gguf));
  absl::StatusOr<ModelConfig> config = ReadModelConfig(gguf);
  if (!config.ok()) return About(path, config.status());
  source.config = *std::move(config);
  source.metadata = std::move(gguf.metadata);
  source.tensors = std::move(gguf.tensors);
  return source;
}

}  // namespace

int64_t ModelSource::bytes() const {
  int64_t total = 0;
  for (const MappedFile& file : files) total += static_cast<int64_t>(file.bytes().size());
  return total;
}

absl::Status About(const std::string& path, const absl::Status& status) {
  if (status.ok() || status.message().find(path) != absl::string_view::npos) return status;
  return absl::Status(status.code(), absl::StrCat(path, ": ", std::string(status.message())));
}

bool IsFolder(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

absl::StatusOr<ModelSource> OpenModel(const std::string& path) {
  return IsFolder(path) ? OpenFolder(path) : OpenGguf(path);
}

absl::StatusOr<std::vector<std::string>> ModelFilesOf(const std::string& path) {
  if (!IsFolder(path)) return SplitFilesOf(path);
  ASSIGN_OR_RETURN(const std::vector<std::string> names, FilesOf(path));
  std::vector<std::string> paths;
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".safetensors") || absl::EndsWith(name, ".json") ||
        absl::EndsWith(name, ".jinja") || absl::EndsWith(name, ".model")) {
      paths.push_back(absl::StrCat(path, "/", name));
    }
  }
  return paths;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (static_cast<int64_t>(file.bytes().size()) > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": has ", file.bytes().size(),
                                                   " bytes, more than ", max_bytes,
                                                   "; the file is damaged: download it again"));
  }
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

}  // namespace rempart::worker
