// SPDX-License-Identifier: Apache-2.0
// The numbers that sampling works with, the same bits on host and device, so that equal logits give
// equal tokens and log-probabilities on both: an order on logits, their weights in fixed point, the
// random number of (seed, position). Only operations whose rounding IEEE 754 fixes, never fused:
// the host's compiler must be told -ffp-contract=off.
#pragma once

#include "kernels/host_device.h"

namespace rempart::kernels {

REMPART_HD_OWN float Times(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
REMPART_HD_OWN float Plus(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Larger for a better token: by logit, then by lower id.
REMPART_HD uint64_t TokenRank(float logit, int64_t id) {
  const uint32_t bits = FloatBits(logit);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

// e^x for x <= 0, to 3 ulp. Cody and Waite's reduction and the polynomial of Cephes' expf. Without
// calls or branches: a loop over it becomes vectors.
REMPART_HD_OWN float ExpOfNegative(float x) {
  const float in_range = x > -87.0f ? x : -87.0f;
  // 1.5 * 2^23: what is added to it is rounded to whole numbers.
  const float shifted = Plus(Times(in_range, 1.44269504f), 12582912.0f);
  const float n = Plus(shifted, -12582912.0f);
  float r = Plus(in_range, Times(n, -0.693359375f));
  r = Plus(r, Times(n, 2.12194440e-4f));
  float y = 1.9875691500e-4f;
  y = Plus(Times(y, r), 1.3981999507e-3f);
  y = Plus(Times(y, r), 8.3334519073e-3f);
  y = Plus(Times(y, r), 4.1665795894e-2f);
  y = Plus(Times(y, r), 1.6666665459e-1f);
  y = Plus(Times(y, r), 5.0000001201e-1f);
  y = Plus(Plus(Times(y, Times(r, r)), r), 1.0f);
  const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  return x > -87.0f ? Times(y, BitsFloat(exponent)) : 0.0f;
}

// 2^40 for the best token: 2^23 tokens cannot overflow the sum.
inline constexpr int kWeightBits = 40;
REMPART_HD_OWN uint64_t FixedWeight(float weight) {
  return static_cast<uint64_t>(static_cast<int64_t>(Times(weight, 1099511627776.0f)));
}

// Natural logarithm of a sum of weights over that of the best token, which is one of them. Cephes'
// logf.
REMPART_HD float LogOfWeights(uint64_t sum) {
  int exponent = 23 - kWeightBits;
  for (; sum >> 24 != 0; sum >>= 1) ++exponent;
  float x = Times(static_cast<float>(sum), 1.1920928955078125e-07f);  // 2^-23: [1, 2)
  if (x > 1.41421356f) {
    x = Times(x, 0.5f);
    ++exponent;
  }
  const auto e = static_cast<float>(exponent);
  x = Plus(x, -1.0f);
  const float z = Times(x, x);
  float y = 7.0376836292e-2f;
  y = Plus(Times(y, x), -1.1514610310e-1f);
  y = Plus(Times(y, x), 1.1676998740e-1f);
  y = Plus(Times(y, x), -1.2420140846e-1f);
  y = Plus(Times(y, x), 1.4249322787e-1f);
  y = Plus(Times(y, x), -1.6668057665e-1f);
  y = Plus(Times(y, x), 2.0000714765e-1f);
  y = Plus(Times(y, x), -2.4999993993e-1f);
  y = Plus(Times(y, x), 3.3333331174e-1f);
  y = Times(Times(y, x), z);
  y = Plus(y, Times(e, -2.12194440e-4f));
  y = Plus(y, Times(z, -0.5f));
  return Plus(Plus(x, y), Times(e, 0.693359375f));
}

// Of a token, from the largest logit and the sum of all tokens' weights.
REMPART_HD float LogProbability(float logit, float max, uint64_t sum) {
  return Plus(Plus(logit, -max), -LogOfWeights(sum));
}

// What the penalties make of the logit of a token that occurred, `generated` times of these in the
// answer.
REMPART_HD float PenalisedLogit(float logit, float repetition, float frequency, float presence,
                                float generated) {
  const float repeated = logit > 0.0f ? logit / repetition : Times(logit, repetition);
  return generated > 0.0f ? Plus(repeated, -Plus(Times(frequency, generated), presence)) : repeated;
}

// How many weights of the best tokens top-p keeps, of all.
REMPART_HD uint64_t NucleusWeight(float top_p, uint64_t total) {
  const auto wanted =
      static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
  return wanted > 0 ? wanted : 1;
}

// Uniform in [0, 1), a function of its arguments.
REMPART_HD double UniformOf(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  const uint64_t bits = HashMix(HashMix(seed + kGolden) + (position + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 1.1102230246251565e-16;  // 2^-53
}

// The token drawn is the first, by id, with which the sum of the kept weights is more than this.
REMPART_HD uint64_t DrawTarget(uint64_t seed, uint64_t position, uint64_t total) {
  const auto target = static_cast<uint64_t>(UniformOf(seed, position) * static_cast<double>(total));
  return target < total ? target : total - 1;
}

}  // namespace rempart::kernels
