// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4) of bytes that come in pieces.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/types/span.h"

namespace rempart {

using Sha256 = std::array<uint8_t, 32>;

// One digest; Add and Finish by one thread.
class Sha256Hasher {
 public:
  Sha256Hasher();
  ~Sha256Hasher();
  void Add(const void* bytes, size_t size);
  // Once, at the end.
  Sha256 Finish();

 private:
  struct Context;
  const std::unique_ptr<Context> context_;
};

Sha256 HashOf(absl::Span<const uint8_t> bytes);
// "sha256:" and 64 hexadecimal digits.
std::string DigestText(const Sha256& digest);

}  // namespace rempart
