// SPDX-License-Identifier: Apache-2.0
// The name of a full KV block: 128 bits of SHA-256 over the name of the block before it and its own
// tokens, so over all tokens from the start; the first block follows the name of a salt. Different
// salts therefore share nothing.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace rempart::worker {

struct PrefixKey {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const PrefixKey&) const = default;
  // The key is uniform already.
  template <typename H>
  friend H AbslHashValue(H h, const PrefixKey& key) {
    return H::combine(std::move(h), key.high, key.low);
  }
};

PrefixKey SaltKey(absl::string_view salt);
PrefixKey NextKey(const PrefixKey& before, absl::Span<const int32_t> tokens);

}  // namespace rempart::worker
