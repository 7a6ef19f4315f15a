// SPDX-License-Identifier: Apache-2.0
// Number formats of the device: BF16, FP8 E4M3 and IEEE half as bits, and their conversions. One
// definition for host and device, so that what the host tests is what the device computes; where
// the hardware converts by itself, it is used, and gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/platform.h"
#include "kernels/host_device.h"

namespace rempart::kernels::cuda {

struct alignas(2) Bf16 {
  uint16_t bits;
};

struct alignas(2) Half {
  uint16_t bits;
};

// E4M3 without infinities: largest 448, NaN is 0x7f.
struct Fp8 {
  uint8_t bits;
};
inline constexpr float kFp8Max = 448.0f;

REMPART_HD float ToFloat(float value) { return value; }
REMPART_HD float ToFloat(Bf16 value) { return BitsFloat(static_cast<uint32_t>(value.bits) << 16); }

// Rounds to nearest even; NaN stays NaN.
REMPART_HD Bf16 ToBf16(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return {bits};
#else
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
#endif
}

// Two BF16 in one register, the first in the low half: an operand of the tensor cores.
REMPART_HD uint32_t PackBf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
#else
  return ToBf16(low).bits | static_cast<uint32_t>(ToBf16(high).bits) << 16;
#endif
}
REMPART_HD float LowFloat(uint32_t pair) { return BitsFloat(pair << 16); }
REMPART_HD float HighFloat(uint32_t pair) { return BitsFloat(pair & 0xffff0000u); }

REMPART_HD float HalfBitsToFloat(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  // 2^112: the exponent re-biased, which also normalises subnormals.
  const float value = BitsFloat(magnitude) * BitsFloat(0x77800000u);
  return BitsFloat(FloatBits(value) | special | sign);
}
REMPART_HD float ToFloat(Half value) { return HalfBitsToFloat(value.bits); }

// Rounds to nearest even, beyond 65504 to infinity; NaN stays NaN.
REMPART_HD Half ToHalf(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return {bits};
#else
  const uint32_t bits = FloatBits(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the step is 2^-24: adding 1/2 rounds to it, and leaves the code in the low bits.
    const float shifted = BitsFloat(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (FloatBits(shifted) - FloatBits(0.5f)))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

REMPART_HD float ToFloat(Fp8 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7f);
  if (magnitude == 0x7f) return BitsFloat(0x7fc00000u);
  // 2^120: the difference of the exponents' biases.
  const float result = BitsFloat(magnitude << 20) * BitsFloat(0x7b800000u);
  return value.bits & 0x80 ? -result : result;
}

// Rounds to nearest even and saturates at 448; NaN stays NaN.
REMPART_HD Fp8 ToFp8(float value) {
  const uint32_t bits = FloatBits(value);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7f};
  if (magnitude >= FloatBits(kFp8Max)) return {static_cast<uint8_t>(sign | 0x7e)};
  if (magnitude < 0x3c800000u) {
    // Below 2^-6 the step is 2^-9: adding 2^14 rounds to it, and leaves the code in the low bits.
    const float shifted = BitsFloat(magnitude) + 16384.0f;
    return {static_cast<uint8_t>(sign | (FloatBits(shifted) - FloatBits(16384.0f)))};
  }
  const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1);
  return {static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20))};
}

REMPART_HD void Store(float* to, float value) { *to = value; }
REMPART_HD void Store(Bf16* to, float value) { *to = ToBf16(value); }
REMPART_HD void Store(Half* to, float value) { *to = ToHalf(value); }
REMPART_HD void Store(Fp8* to, float value) { *to = ToFp8(value); }

REMPART_HD int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class T>
REMPART_HD T Min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
REMPART_HD T Max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace rempart::kernels::cuda
