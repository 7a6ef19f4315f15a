// SPDX-License-Identifier: Apache-2.0
#include "common/printable.h"

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace rempart {
namespace {

constexpr uint32_t kFirstPrintable = 0x20;
constexpr uint32_t kDelete = 0x7f;
constexpr uint32_t kLastControl = 0x9f;  // of those that begin with kDelete
constexpr uint32_t kLineSeparator = 0x2028, kParagraphSeparator = 0x2029;

struct Character {
  size_t bytes = 0;  // 0: no UTF-8
  uint32_t point = 0;
};

// The first one of a text that is not empty: as the Unicode standard's table 3-7 has them.
Character First(absl::string_view text) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {1, lead};
  const size_t bytes = lead >= 0xf0 ? 4 : (lead >= 0xe0 ? 3 : 2);
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {};
  uint32_t point = lead & (0x7fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((at(i) & 0xc0) != 0x80) return {};
    point = point << 6 | (at(i) & 0x3f);
  }
  const bool is_surrogate = point >= 0xd800 && point < 0xe000;
  const bool is_short = (bytes == 3 && point < 0x800) || (bytes == 4 && point < 0x10000);
  if (is_surrogate || is_short || point > 0x10ffff) return {};
  return {bytes, point};
}

bool IsControl(uint32_t point) {
  return point < kFirstPrintable || (point >= kDelete && point <= kLastControl) ||
         point == kLineSeparator || point == kParagraphSeparator;
}

}  // namespace

std::string Printable(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Character first = First(text);
    const absl::string_view bytes = text.substr(0, first.bytes > 0 ? first.bytes : 1);
    text.remove_prefix(bytes.size());
    if (first.bytes > 0 && !IsControl(first.point)) {
      out.append(bytes.data(), bytes.size());
    } else if (bytes == "\n") {
      out += "\\n";
    } else if (bytes == "\t") {
      out += "\\t";
    } else {
      for (const char c : bytes) absl::StrAppendFormat(&out, "\\x%02x", static_cast<uint8_t>(c));
    }
  }
  return out;
}

std::string Printable(absl::string_view text, size_t max_bytes) {
  std::string all = Printable(text);
  if (all.size() <= max_bytes) return all;
  const auto is_inside = [&](size_t i) { return (static_cast<uint8_t>(all[i]) & 0xc0) == 0x80; };
  size_t head = max_bytes / 3 * 2;
  size_t tail = all.size() - max_bytes / 3;
  while (head > 0 && is_inside(head)) --head;
  while (tail < all.size() && is_inside(tail)) ++tail;
  return absl::StrCat(all.substr(0, head), " [", tail - head, " bytes] ", all.substr(tail));
}

}  // namespace rempart
