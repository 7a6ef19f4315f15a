// SPDX-License-Identifier: Apache-2.0
#include "common/split_files.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace rempart {
namespace {

constexpr size_t kDigits = 5;
constexpr int kMaxParts = 1000;

// Takes five digits off the end of `text`; -1 when there are none.
int ConsumeNumber(absl::string_view& text) {
  if (text.size() < kDigits) return -1;
  const absl::string_view digits = text.substr(text.size() - kDigits);
  int number = 0;
  if (!std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) ||
      !absl::SimpleAtoi(digits, &number)) {
    return -1;
  }
  text.remove_suffix(kDigits);
  return number;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> SplitFilesOf(const std::string& path) {
  absl::string_view rest = path;
  if (!absl::ConsumeSuffix(&rest, ".gguf")) return std::vector<std::string>{path};
  const int count = ConsumeNumber(rest);
  if (count < 2 || !absl::ConsumeSuffix(&rest, "-of-")) return std::vector<std::string>{path};
  const int number = ConsumeNumber(rest);
  if (number < 0 || !absl::ConsumeSuffix(&rest, "-")) return std::vector<std::string>{path};
  const auto name = [&](int part) {
    return absl::StrFormat("%s-%05d-of-%05d.gguf", rest, part, count);
  };
  if (count > kMaxParts) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is named as one of ", count,
                                                   " parts; at most ", kMaxParts, " are read"));
  }
  if (number != 1) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is part ", number, " of ", count,
                                                   " of a model: name its first part, ", name(1)));
  }
  std::vector<std::string> paths;
  for (int part = 1; part <= count; ++part) paths.push_back(name(part));
  return paths;
}

}  // namespace rempart
