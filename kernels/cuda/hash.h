// SPDX-License-Identifier: Apache-2.0
// The checksum of op hash. A sum, so that any number of threads may add in any order.
#pragma once

#include "kernels/cuda/numbers.h"

namespace rempart::kernels::cuda {

REMPART_HD uint64_t HashWord(uint64_t word, uint64_t index) {
  return HashMix(word + HashMix(index + 0x9e3779b97f4a7c15u));
}

// Host only.
inline uint64_t HashBytes(const void* data, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t at = 0; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, static_cast<const uint8_t*>(data) + at,
                static_cast<size_t>(Min<int64_t>(8, bytes - at)));
    sum += HashWord(word, static_cast<uint64_t>(at / 8));
  }
  return sum;
}

}  // namespace rempart::kernels::cuda
