// SPDX-License-Identifier: Apache-2.0
// What drawing a token asks of a whole row of logits: the best one, and all weights. Both are fixed
// to the bit (kernels/sample_math.h), so tiers differ in speed alone. Plain loops over whole lanes
// each tier's compiler turns into its vectors.
#pragma once

#include "kernels/cpu/math.inl.h"
#include "kernels/sample_math.h"

namespace rempart::kernels {

template <class V>
struct Sampling {
  using F = typename V::F;
  // So many at a time: a cache line of logits.
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kStretch = 16 * kLanes;

  static int64_t Argmax(const float* x, int64_t n) {
    float best[kLanes];
    int32_t is_nan[kLanes] = {};
    for (int64_t lane = 0; lane < kLanes; ++lane) best[lane] = x[0];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float value = x[i + lane];
        best[lane] = value > best[lane] ? value : best[lane];
        is_nan[lane] |= value != value ? 1 : 0;
      }
    }
    for (int64_t lane = 0; i + lane < n; ++lane) {
      const float value = x[i + lane];
      best[lane] = value > best[lane] ? value : best[lane];
      is_nan[lane] |= value != value ? 1 : 0;
    }
    float largest = best[0];
    int32_t found_nan = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      largest = best[lane] > largest ? best[lane] : largest;
      found_nan |= is_nan[lane];
    }
    return found_nan != 0 ? -1 : Find(x, n, largest);
  }

  // The first that is equal to `value`; there is one.
  static int64_t Find(const float* x, int64_t n, float value) {
    int64_t begin = 0;
    for (; begin + kStretch <= n; begin += kStretch) {
      int32_t found = 0;
      for (int64_t i = 0; i < kStretch; ++i) found |= x[begin + i] == value ? 1 : 0;
      if (found != 0) break;
    }
    while (x[begin] != value) ++begin;
    return begin;
  }

  // ExpOfNegative of kernels/sample_math.h, step by step.
  static F Exp(F x) {
    const F in_range = V::Max(x, V::Set1(-87.0f));
    const auto n = V::Round(V::Mul(in_range, V::Set1(1.44269504f)));
    const F nf = V::ToFloat(n);
    F r = V::Add(in_range, V::Mul(nf, V::Set1(-0.693359375f)));
    r = V::Add(r, V::Mul(nf, V::Set1(2.12194440e-4f)));
    F y = V::Set1(1.9875691500e-4f);
    y = V::Add(V::Mul(y, r), V::Set1(1.3981999507e-3f));
    y = V::Add(V::Mul(y, r), V::Set1(8.3334519073e-3f));
    y = V::Add(V::Mul(y, r), V::Set1(4.1665795894e-2f));
    y = V::Add(V::Mul(y, r), V::Set1(1.6666665459e-1f));
    y = V::Add(V::Mul(y, r), V::Set1(5.0000001201e-1f));
    y = V::Add(V::Add(V::Mul(y, V::Mul(r, r)), r), V::Set1(1.0f));
    // 1 above -87, 0 from there on: the difference is exact, and no smaller than 2^-17.
    const F above = V::Mul(V::Add(x, V::Set1(87.0f)), V::Set1(1e30f));
    const F factor = V::Min(V::Max(above, V::Zero()), V::Set1(1.0f));
    return V::Mul(V::Mul(y, V::Pow2(n)), factor);
  }

  static uint64_t Weigh(const float* logits, int64_t n, float max, float temperature,
                        float* weights) {
    const F largest = V::Set1(max), divisor = V::Set1(temperature);
    uint64_t sums[kLanes] = {};
    for (int64_t begin = 0; begin < n; begin += kStretch) {
      const int64_t count = n - begin < kStretch ? n - begin : kStretch;
      float* to = weights + begin;
      Math<V>::Map(logits + begin, to, count,
                   [&](F x, int64_t) { return Exp(V::Div(V::Sub(x, largest), divisor)); });
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += FixedWeight(to[i + lane]);
      }
      for (; i < count; ++i) sums[0] += FixedWeight(to[i]);
    }
    uint64_t sum = 0;
    for (const uint64_t lane : sums) sum += lane;
    return sum;
  }
};

}  // namespace rempart::kernels
