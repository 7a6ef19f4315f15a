// SPDX-License-Identifier: Apache-2.0
// The numbers that sampling works with, the same bits on host and device: an order on logits, their
// weights in fixed point, the random number of (seed, position).
#pragma once

#include "kernels/cuda/hash.h"
#include "kernels/cuda/numbers.h"

namespace rempart::kernels::cuda {

// Larger for a better token: by logit, then by lower id.
REMPART_HD uint64_t TokenRank(float logit, int64_t id) {
  const uint32_t bits = FloatBits(logit);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

// e^x for x <= 0, to 2 ulp, by operations whose rounding IEEE 754 fixes. Cody and Waite's reduction
// and the polynomial of Cephes' expf.
REMPART_HD float ExpOfNegative(float x) {
  if (!(x > -87.0f)) return 0.0f;
  const float n = rintf(x * 1.44269504f);
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 2.12194440e-4f, r);
  float y = 1.9875691500e-4f;
  y = fmaf(y, r, 1.3981999507e-3f);
  y = fmaf(y, r, 8.3334519073e-3f);
  y = fmaf(y, r, 4.1665795894e-2f);
  y = fmaf(y, r, 1.6666665459e-1f);
  y = fmaf(y, r, 5.0000001201e-1f);
  y = fmaf(y, r * r, r + 1.0f);
  return y * BitsFloat(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

// 2^40 for the best token: 2^23 tokens cannot overflow the sum.
REMPART_HD uint64_t FixedWeight(float weight) {
  return static_cast<uint64_t>(weight * 1099511627776.0f);
}

// As CounterUniform of the engine's sampler: uniform in [0, 1).
REMPART_HD double UniformOf(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  const uint64_t bits = HashMix(HashMix(seed + kGolden) + (position + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 1.1102230246251565e-16;  // 2^-53
}

}  // namespace rempart::kernels::cuda
