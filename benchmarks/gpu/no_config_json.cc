// SPDX-License-Identifier: Apache-2.0
// Stands in for worker/model/config_json.cc where gpu_bench is linked statically (REMPART_STATIC):
// simdjson is there as a shared library only, and gpu_bench reads GGUF files, no folders. Families
// read both, so their other half has to link; nothing makes a ConfigJson, so nothing gets to the
// rest.
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "worker/model/config_json.h"

namespace rempart::worker {
namespace {

absl::Status Nobody(absl::string_view key) {
  CHECK(false) << key << " of a ConfigJson, which this program cannot make";
  return absl::InternalError(key);
}

}  // namespace

absl::StatusOr<ConfigJson> ConfigJson::Parse(absl::string_view name, absl::string_view) {
  return absl::UnimplementedError(
      absl::StrCat(name, ": this program reads GGUF files alone, no model folders"));
}

bool ConfigJson::Has(absl::string_view key) const { return Nobody(key).ok(); }

absl::StatusOr<int64_t> ConfigJson::Size(absl::string_view key, std::optional<int64_t>,
                                         int64_t) const {
  return Nobody(key);
}

absl::StatusOr<double> ConfigJson::Number(absl::string_view key, std::optional<double>) const {
  return Nobody(key);
}

absl::StatusOr<bool> ConfigJson::Bool(absl::string_view key, bool) const { return Nobody(key); }

absl::StatusOr<std::string> ConfigJson::String(absl::string_view key,
                                               std::optional<std::string>) const {
  return Nobody(key);
}

absl::StatusOr<std::vector<double>> ConfigJson::Numbers(absl::string_view key) const {
  return Nobody(key);
}

absl::StatusOr<std::vector<std::string>> ConfigJson::Strings(absl::string_view key) const {
  return Nobody(key);
}

absl::StatusOr<ConfigJson> ConfigJson::Object(absl::string_view key) const { return Nobody(key); }

std::vector<std::string> ConfigJson::Keys() const { return {std::string(Nobody("").message())}; }

std::string ConfigJson::Where(absl::string_view key) const {
  return std::string(Nobody(key).message());
}

}  // namespace rempart::worker
