// SPDX-License-Identifier: Apache-2.0
// A JSON object of a model folder (config.json and its inner objects), read by key. A null counts
// as absent. Errors name the file and the key.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rempart::worker {

// `text` with ".0" behind integers of more than 18 digits, which would not fit into 64 bits:
// writers of these files say "no limit" by such (1000000000000000019884624838656).
std::string WithWideIntegersAsDoubles(absl::string_view text);

class ConfigJson {
 public:
  // `name` begins every error message. InvalidArgument when `text` is not a JSON object.
  static absl::StatusOr<ConfigJson> Parse(absl::string_view name, absl::string_view text);

  bool Has(absl::string_view key) const;
  // The getters answer InvalidArgument for an absent key without a fallback and for a value of
  // another kind. Size: 1 to `limit`.
  absl::StatusOr<int64_t> Size(absl::string_view key, std::optional<int64_t> fallback,
                               int64_t limit) const;
  absl::StatusOr<double> Number(absl::string_view key, std::optional<double> fallback) const;
  absl::StatusOr<bool> Bool(absl::string_view key, bool fallback) const;
  absl::StatusOr<std::string> String(absl::string_view key,
                                     std::optional<std::string> fallback) const;
  absl::StatusOr<std::vector<double>> Numbers(absl::string_view key) const;
  absl::StatusOr<std::vector<std::string>> Strings(absl::string_view key) const;
  absl::StatusOr<ConfigJson> Object(absl::string_view key) const;
  // The names of all entries that are not null, as they come.
  std::vector<std::string> Keys() const;

  // "config.json: rope_scaling.factor", for messages.
  std::string Where(absl::string_view key) const;

 private:
  ConfigJson() = default;
  simdjson::simdjson_result<simdjson::dom::element> Find(absl::string_view key) const;
  absl::Status Wrong(absl::string_view key, absl::string_view kind) const;

  std::string prefix_;
  std::shared_ptr<simdjson::dom::parser> parser_;  // owns what object_ views
  simdjson::dom::object object_;
};

}  // namespace rempart::worker
