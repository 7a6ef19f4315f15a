// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/quantity.h"

#include <cmath>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace rempart::op {
namespace {

constexpr double kLargest = 9.0e18;

// What a suffix multiplies by; none for an unknown one.
std::optional<double> Multiplier(absl::string_view suffix) {
  static const std::map<absl::string_view, double> kSuffixes = {
      {"", 1},        {"n", 1e-9},    {"u", 1e-6},    {"m", 1e-3},
      {"k", 1e3},     {"M", 1e6},     {"G", 1e9},     {"T", 1e12},
      {"P", 1e15},    {"E", 1e18},    {"Ki", 1024.0}, {"Mi", 1048576.0},
      {"Gi", 0x1p30}, {"Ti", 0x1p40}, {"Pi", 0x1p50}, {"Ei", 0x1p60}};
  const auto found = kSuffixes.find(suffix);
  if (found == kSuffixes.end()) return std::nullopt;
  return found->second;
}

int64_t Whole(int64_t milli) { return milli / 1000 + (milli % 1000 > 0 ? 1 : 0); }

}  // namespace

std::optional<int64_t> ParseMilli(absl::string_view text) {
  size_t end = 0;
  while (end < text.size() && (absl::ascii_isdigit(static_cast<unsigned char>(text[end])) ||
                               text[end] == '.' || text[end] == '+' || text[end] == '-')) {
    ++end;
  }
  absl::string_view number = text.substr(0, end);
  absl::string_view suffix = text.substr(end);
  // "2e3", but not "2E".
  if (suffix.size() > 1 && (suffix[0] == 'e' || suffix[0] == 'E') && suffix != "Ei") {
    number = text;
    suffix = "";
  }
  double value = 0;
  const std::optional<double> multiplier = Multiplier(suffix);
  if (!multiplier.has_value() || !absl::SimpleAtod(number, &value)) return std::nullopt;
  const double milli = value * *multiplier * 1000;
  if (!std::isfinite(milli) || milli < 0) return std::nullopt;
  // A rounding of the multiplication must not become a whole unit.
  return milli >= kLargest ? static_cast<int64_t>(kLargest)
                           : static_cast<int64_t>(std::ceil(milli - 1e-6));
}

Amounts ParseAmounts(const std::map<std::string, std::string>& quantities) {
  Amounts amounts;
  for (const auto& [resource, text] : quantities) {
    const std::optional<int64_t> milli = ParseMilli(text);
    if (milli.has_value()) amounts[resource] = resource == "cpu" ? *milli : Whole(*milli);
  }
  return amounts;
}

void AddAmounts(const Amounts& from, Amounts& to) {
  for (const auto& [resource, amount] : from) to[resource] += amount;
}

void SubtractAmounts(const Amounts& from, Amounts& to) {
  for (const auto& [resource, amount] : from) to[resource] -= amount;
}

std::string AmountInWords(const std::string& resource, int64_t amount) {
  if (resource == "cpu") return absl::StrFormat("%g CPU", static_cast<double>(amount) / 1000);
  if (resource == "memory" || resource == "ephemeral-storage") {
    return absl::StrCat(amount / (1 << 20), " MiB of ", resource == "memory" ? "memory" : resource);
  }
  return absl::StrCat(amount, " ", resource);
}

std::string AmountsInWords(const Amounts& amounts) {
  std::vector<std::string> words;
  for (const auto& [resource, amount] : amounts) {
    if (amount > 0) words.push_back(AmountInWords(resource, amount));
  }
  return words.empty() ? "nothing" : absl::StrJoin(words, " and ");
}

}  // namespace rempart::op
