// SPDX-License-Identifier: Apache-2.0
// What is compiled for the host and for devices alike: the word for it, the bits of a float, an
// integer's hash.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define REMPART_HD __host__ __device__ __forceinline__
#else
#define REMPART_HD inline
#endif

// The same for what the CPU's tiers call too: a shared definition could leak instructions that the
// machine lacks from one tier into another, so on the host each file has its own.
#if defined(__CUDACC__)
#define REMPART_HD_OWN REMPART_HD
#else
#define REMPART_HD_OWN static inline
#endif

namespace rempart::kernels {

REMPART_HD_OWN uint32_t FloatBits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
#endif
}

REMPART_HD_OWN float BitsFloat(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes every output bit.
REMPART_HD uint64_t HashMix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace rempart::kernels
