// SPDX-License-Identifier: Apache-2.0
// Transcendental functions of a whole vector.
#pragma once

namespace rempart::kernels {

template <class V>
struct Math {
  using F = typename V::F;

  // e^x within 2 ulp for x in [-87.3, 88.3]; clamped outside (never zero, never infinite).
  // e^x = 2^n * e^r with |r| <= ln(2)/2; the polynomial is Cephes' expf.
  static F Exp(F x) {
    x = V::Min(V::Max(x, V::Set1(-87.3f)), V::Set1(88.3f));
    const auto n = V::Round(V::Mul(x, V::Set1(1.44269504088896341f)));
    const F nf = V::ToFloat(n);
    F r = V::Fma(nf, V::Set1(-0.693359375f), x);
    r = V::Fma(nf, V::Set1(2.12194440e-4f), r);
    F p = V::Set1(1.9875691500e-4f);
    p = V::Fma(p, r, V::Set1(1.3981999507e-3f));
    p = V::Fma(p, r, V::Set1(8.3334519073e-3f));
    p = V::Fma(p, r, V::Set1(4.1665795894e-2f));
    p = V::Fma(p, r, V::Set1(1.6666665459e-1f));
    p = V::Fma(p, r, V::Set1(5.0000001201e-1f));
    p = V::Add(V::Fma(p, V::Mul(r, r), r), V::Set1(1.0f));
    return V::Mul(p, V::Pow2(n));
  }

  // 1 / (1 + e^-x)
  static F Sigmoid(F x) {
    const F one = V::Set1(1.0f);
    return V::Div(one, V::Add(one, Exp(V::Sub(V::Zero(), x))));
  }

  static F Silu(F x) { return V::Mul(x, Sigmoid(x)); }

  // 0.5 * x * (1 + tanh(u)) = x * sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3)
  static F GeluTanh(F x) {
    const F cubic = V::Fma(V::Mul(V::Set1(0.044715f), V::Mul(x, x)), x, x);
    return V::Mul(x, Sigmoid(V::Mul(V::Set1(2.0f * 0.797884560802865f), cubic)));
  }

  // Absolute error below 2e-7.
  static F Tanh(F x) { return V::Sub(V::Mul(V::Set1(2.0f), Sigmoid(V::Add(x, x))), V::Set1(1.0f)); }

  // fn over n values from `in` to `out` (which may be the same); the tail runs in a padded vector,
  // so that a value does not depend on where the range ends.
  template <class Fn>
  static void Map(const float* in, float* out, int64_t n, Fn fn) {
    int64_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::Store(out + i, fn(V::Load(in + i), i));
    if (i == n) return;
    float lanes[V::kLanes] = {};
    for (int64_t j = i; j < n; ++j) lanes[j - i] = in[j];
    float results[V::kLanes];
    V::Store(results, fn(V::Load(lanes), i));
    for (int64_t j = i; j < n; ++j) out[j] = results[j - i];
  }
};

}  // namespace rempart::kernels
