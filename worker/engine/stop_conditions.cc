// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/stop_conditions.h"

#include <algorithm>
#include <cstdint>

namespace rempart::worker {
namespace {

constexpr char kReplacement[] = "\xef\xbf\xbd";

struct Utf8Step {
  size_t length;  // bytes to take
  enum { kWhole, kInvalid, kIncomplete } kind;
};

// The character at the front of `bytes`, by table 3-7 of the Unicode standard.
Utf8Step FirstCharacter(absl::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {1, Utf8Step::kWhole};
  if (lead < 0xc2 || lead > 0xf4) return {1, Utf8Step::kInvalid};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {bytes.size(), Utf8Step::kIncomplete};
    uint8_t low = 0x80, high = 0xbf;
    if (i == 1 && lead == 0xe0) low = 0xa0;
    if (i == 1 && lead == 0xed) high = 0x9f;
    if (i == 1 && lead == 0xf0) low = 0x90;
    if (i == 1 && lead == 0xf4) high = 0x8f;
    if (at(i) < low || at(i) > high) return {i, Utf8Step::kInvalid};
  }
  return {length, Utf8Step::kWhole};
}

// Length of the longest end of `text` that is a proper beginning of `stop`.
size_t OverlapWithStart(absl::string_view text, absl::string_view stop) {
  size_t length = std::min(text.size(), stop.size() - 1);
  while (length > 0 && text.substr(text.size() - length) != stop.substr(0, length)) --length;
  return length;
}

}  // namespace

std::string TakeWholeCharacters(std::string& bytes) {
  std::string whole;
  size_t position = 0;
  while (position < bytes.size()) {
    const Utf8Step step = FirstCharacter(absl::string_view(bytes).substr(position));
    if (step.kind == Utf8Step::kIncomplete) break;
    if (step.kind == Utf8Step::kWhole) {
      whole.append(bytes, position, step.length);
    } else {
      whole += kReplacement;
    }
    position += step.length;
  }
  bytes.erase(0, position);
  return whole;
}

std::string TextStream::Append(absl::string_view token_bytes) {
  if (stopped_) return "";
  bytes_.append(token_bytes.data(), token_bytes.size());
  held_ += TakeWholeCharacters(bytes_);
  size_t match = std::string::npos;
  for (const std::string& stop : stop_) {
    const size_t found = held_.find(stop);
    if (found < match) {
      match = found;
      matched_stop_ = stop;
    }
  }
  if (match != std::string::npos) {
    stopped_ = true;
    std::string text = held_.substr(0, match);
    held_.clear();
    bytes_.clear();
    return text;
  }
  size_t hold = 0;
  for (const std::string& stop : stop_) hold = std::max(hold, OverlapWithStart(held_, stop));
  std::string text = held_.substr(0, held_.size() - hold);
  held_.erase(0, text.size());
  return text;
}

std::string TextStream::Flush() {
  std::string text = std::move(held_);
  held_.clear();
  if (!bytes_.empty()) text += kReplacement;
  bytes_.clear();
  return text;
}

}  // namespace rempart::worker
