// SPDX-License-Identifier: Apache-2.0
#include "worker/model/config_json.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace rempart::worker {

std::string WithWideIntegersAsDoubles(absl::string_view text) {
  constexpr size_t kMaxDigits = 18;
  std::string out;
  out.reserve(text.size() + 16);
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (in_string || !absl::ascii_isdigit(c)) {
      if (in_string && c == '\\' && i + 1 < text.size()) out += text[i++];
      if (c == '"') in_string = !in_string;
      out += text[i++];
      continue;
    }
    const size_t begin = i;
    while (i < text.size() && absl::ascii_isdigit(text[i])) ++i;
    absl::StrAppend(&out, text.substr(begin, i - begin));
    // Neither the fraction nor the exponent of a number, nor followed by one.
    const char before = begin > 0 ? text[begin - 1] : ' ';
    const char after = i < text.size() ? text[i] : ' ';
    const bool is_part = absl::StrContains(".eE+", before) || absl::StrContains(".eE", after);
    if (i - begin > kMaxDigits && !is_part) out += ".0";
  }
  return out;
}

absl::StatusOr<ConfigJson> ConfigJson::Parse(absl::string_view name, absl::string_view text) {
  ConfigJson config;
  config.prefix_ = absl::StrCat(name, ": ");
  config.parser_ = std::make_shared<simdjson::dom::parser>();
  const auto error = config.parser_->parse(WithWideIntegersAsDoubles(text)).get(config.object_);
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " is not a JSON object (", simdjson::error_message(error), "); download it again"));
  }
  return config;
}

simdjson::simdjson_result<simdjson::dom::element> ConfigJson::Find(absl::string_view key) const {
  return object_[std::string_view(key.data(), key.size())];
}

bool ConfigJson::Has(absl::string_view key) const {
  simdjson::dom::element value;
  return Find(key).get(value) == simdjson::SUCCESS && !value.is_null();
}

std::string ConfigJson::Where(absl::string_view key) const { return absl::StrCat(prefix_, key); }

absl::Status ConfigJson::Wrong(absl::string_view key, absl::string_view kind) const {
  if (!Has(key)) return absl::InvalidArgumentError(absl::StrCat(Where(key), " is missing"));
  return absl::InvalidArgumentError(absl::StrCat(
      Where(key), " is ", std::string(simdjson::minify(Find(key).value())), "; it must be ", kind));
}

absl::StatusOr<int64_t> ConfigJson::Size(absl::string_view key, std::optional<int64_t> fallback,
                                         int64_t limit) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  int64_t value = 0;
  if (Find(key).get(value) != simdjson::SUCCESS || value < 1 || value > limit) {
    return Wrong(key, absl::StrCat("an integer from 1 to ", limit));
  }
  return value;
}

absl::StatusOr<double> ConfigJson::Number(absl::string_view key,
                                          std::optional<double> fallback) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  double value = 0;
  if (Find(key).get(value) != simdjson::SUCCESS || !std::isfinite(value)) {
    return Wrong(key, "a number");
  }
  return value;
}

absl::StatusOr<bool> ConfigJson::Bool(absl::string_view key, bool fallback) const {
  if (!Has(key)) return fallback;
  bool value = false;
  if (Find(key).get(value) != simdjson::SUCCESS) return Wrong(key, "true or false");
  return value;
}

absl::StatusOr<std::string> ConfigJson::String(absl::string_view key,
                                               std::optional<std::string> fallback) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  std::string_view value;
  if (Find(key).get(value) != simdjson::SUCCESS) return Wrong(key, "a string");
  return std::string(value);
}

absl::StatusOr<std::vector<double>> ConfigJson::Numbers(absl::string_view key) const {
  simdjson::dom::array array;
  std::vector<double> numbers;
  if (Find(key).get(array) != simdjson::SUCCESS) return Wrong(key, "an array of numbers");
  for (simdjson::dom::element item : array) {
    double number = 0;
    if (item.get(number) != simdjson::SUCCESS) return Wrong(key, "an array of numbers");
    numbers.push_back(number);
  }
  return numbers;
}

absl::StatusOr<std::vector<std::string>> ConfigJson::Strings(absl::string_view key) const {
  simdjson::dom::array array;
  std::vector<std::string> strings;
  if (Find(key).get(array) != simdjson::SUCCESS) return Wrong(key, "an array of strings");
  for (simdjson::dom::element item : array) {
    std::string_view text;
    if (item.get(text) != simdjson::SUCCESS) return Wrong(key, "an array of strings");
    strings.emplace_back(text);
  }
  return strings;
}

std::vector<std::string> ConfigJson::Keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object_) {
    if (!value.is_null()) keys.emplace_back(key);
  }
  return keys;
}

absl::StatusOr<ConfigJson> ConfigJson::Object(absl::string_view key) const {
  ConfigJson inner;
  if (Find(key).get(inner.object_) != simdjson::SUCCESS) return Wrong(key, "an object");
  inner.prefix_ = absl::StrCat(prefix_, key, ".");
  inner.parser_ = parser_;
  return inner;
}

}  // namespace rempart::worker
