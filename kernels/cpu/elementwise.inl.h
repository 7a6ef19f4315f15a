// SPDX-License-Identifier: Apache-2.0
// Norms, activations, activation quantisation and reductions: one pass over rows that lie in the
// first-level cache; formulas in ops.h.
#pragma once

#include <cmath>

#include "kernels/cpu/math.inl.h"
#include "kernels/ops.h"

namespace rempart::kernels {

template <class V>
struct Elementwise {
  using F = typename V::F;
  static constexpr int kL = V::kLanes;

  static void QuantizeBlock(const float* x, ActivationBlock* block) {
    constexpr int kVectors = 32 / kL;
    F values[kVectors];
    F largest_lanes = V::Zero();
    for (int v = 0; v < kVectors; ++v) {
      values[v] = V::Load(x + v * kL);
      largest_lanes = V::Max(largest_lanes, V::Abs(values[v]));
    }
    const float largest = V::MaxLane(largest_lanes);
    const F inverse = V::Set1(largest > 0.0f ? 127.0f / largest : 0.0f);
    // Small integers: float sums of them are exact.
    F sums[2] = {V::Zero(), V::Zero()};
    for (int v = 0; v < kVectors; ++v) {
      const typename V::I q = V::Round(V::Mul(values[v], inverse));
      V::StoreInt8(block->q + v * kL, q);
      F& sum = sums[v / (kVectors / 2)];
      sum = V::Add(sum, V::ToFloat(q));
    }
    const auto low = static_cast<int32_t>(V::Sum(sums[0]));
    const auto high = static_cast<int32_t>(V::Sum(sums[1]));
    block->scale = largest / 127.0f;
    block->sum = low + high;
    block->sum_low = low;
    block->sum_high = high;
    block->minus_sum = -128 * (low + high);
    block->minus_sum_low = -128 * low;
    block->minus_sum_high = -128 * high;
    block->scaled_sum = block->scale * static_cast<float>(block->sum);
  }

  static void Quantize(const float* x, int64_t x_stride, int64_t cols, ActivationBlock* xq,
                       int64_t xq_stride, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t b = 0; b < cols / kActivationGroup; ++b) {
        QuantizeBlock(x + t * x_stride + b * kActivationGroup, xq + t * xq_stride + b);
      }
    }
  }

  static void RmsNorm(const float* x, int64_t x_stride, const float* weight, float eps,
                      int64_t cols, float* out, int64_t out_stride, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in = x + r * x_stride;
      float* to = out + r * out_stride;
      F even = V::Zero(), odd = V::Zero();
      int64_t i = 0;
      for (; i + 2 * kL <= cols; i += 2 * kL) {
        const F a = V::Load(in + i), b = V::Load(in + i + kL);
        even = V::Fma(a, a, even);
        odd = V::Fma(b, b, odd);
      }
      float sum = V::Sum(V::Add(even, odd));
      for (; i < cols; ++i) sum += in[i] * in[i];
      const float factor = 1.0f / std::sqrt(sum / static_cast<float>(cols) + eps);
      const F factors = V::Set1(factor);
      for (i = 0; i + kL <= cols; i += kL) {
        const F scaled = V::Mul(V::Load(in + i), factors);
        V::Store(to + i, weight != nullptr ? V::Mul(scaled, V::Load(weight + i)) : scaled);
      }
      for (; i < cols; ++i) to[i] = in[i] * factor * (weight != nullptr ? weight[i] : 1.0f);
    }
  }

  template <F (*kAct)(F)>
  static void ActMul(const float* gate, const float* up, int64_t in_stride, int64_t cols,
                     float* out, int64_t out_stride, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* g = gate + r * in_stride;
      const float* u = up + r * in_stride;
      float* to = out + r * out_stride;
      int64_t i = 0;
      for (; i + kL <= cols; i += kL) {
        V::Store(to + i, V::Mul(kAct(V::Load(g + i)), V::Load(u + i)));
      }
      float lanes[kL];
      const int64_t whole = i;
      if (whole == cols) continue;
      for (; i < cols; ++i) lanes[i - whole] = g[i];
      for (i = cols - whole; i < kL; ++i) lanes[i] = 0.0f;
      V::Store(lanes, kAct(V::Load(lanes)));
      for (i = whole; i < cols; ++i) to[i] = lanes[i - whole] * u[i];
    }
  }

  static void Add(const float* a, const float* b, float* out, int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kL <= end; i += kL) V::Store(out + i, V::Add(V::Load(a + i), V::Load(b + i)));
    for (; i < end; ++i) out[i] = a[i] + b[i];
  }

  static void Scale(float* x, float factor, int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kL <= end; i += kL) V::Store(x + i, V::Mul(V::Load(x + i), V::Set1(factor)));
    for (; i < end; ++i) x[i] *= factor;
  }

  static void Softcap(float* x, float cap, int64_t begin, int64_t end) {
    const F caps = V::Set1(cap), inverse = V::Set1(1.0f / cap);
    Math<V>::Map(x + begin, x + begin, end - begin,
                 [&](F v, int64_t) { return V::Mul(caps, Math<V>::Tanh(V::Mul(v, inverse))); });
  }

  static float Largest(const float* x, int64_t n) {
    F lanes = V::Set1(x[0]);
    int64_t i = 0;
    for (; i + kL <= n; i += kL) lanes = V::Max(lanes, V::Load(x + i));
    float largest = V::MaxLane(lanes);
    for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
  }

  static float Softmax(float* x, int64_t n) {
    const float largest = Largest(x, n);
    const F offset = V::Set1(largest);
    Math<V>::Map(x, x, n, [&](F v, int64_t) { return Math<V>::Exp(V::Sub(v, offset)); });
    // Vocabularies are large: the lanes of a stretch are added in double.
    double sum = 0.0;
    for (int64_t first = 0; first < n; first += 1024) {
      const int64_t last = n - first < 1024 ? n : first + 1024;
      F lanes = V::Zero();
      int64_t i = first;
      for (; i + kL <= last; i += kL) lanes = V::Add(lanes, V::Load(x + i));
      sum += static_cast<double>(V::Sum(lanes));
      for (; i < last; ++i) sum += static_cast<double>(x[i]);
    }
    Scale(x, static_cast<float>(1.0 / sum), 0, n);
    return static_cast<float>(static_cast<double>(largest) + std::log(sum));
  }
};

}  // namespace rempart::kernels
