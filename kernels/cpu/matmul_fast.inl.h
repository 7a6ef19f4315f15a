// SPDX-License-Identifier: Apache-2.0
// y[t, r] = sum over groups g of  d[r,g] * da[t,g] * sum_i (w - offset)[r,g,i] * a[t,g,i]
//                               + min[r,g] * da[t,g] * sum_i a[t,g,i]
// The inner sums are exact in int32; the outer ones are added in the order of g, whatever the
// number of tokens: a token's result does not depend on the batch. Bytes: the packed weights once
// per block of tokens. Bound: memory for one token, byte multiplications from about four tokens on.
#pragma once

#include "kernels/cpu/matmul_exact.inl.h"
#include "kernels/cpu/packed.inl.h"

namespace rempart::kernels {

// Exact int32 dot product per lane of kCount vectors of codes (below 2^kBits; signed bytes when
// kSigned) with 4 * kCount activations.
template <class V, int kBits, bool kSigned, int kCount>
inline typename V::I DotCodes(const typename V::I* w, const int8_t* a) {
  using I = typename V::I;
  if constexpr (V::kHasDotBytes) {
    I sum = V::ZeroInt();
    for (int j = 0; j < kCount; ++j) sum = V::DotBytes(sum, w[j], V::BroadcastBytes4(a + 4 * j));
    return sum;
  } else if constexpr (kSigned) {
    // |w| <= 128 and |a| <= 127, so a pair of products stays below 2^15.
    I sum = V::ZeroInt();
    for (int j = 0; j < kCount; ++j) {
      const I x = V::Sign8(V::BroadcastBytes4(a + 4 * j), w[j]);
      sum = V::AddInt(sum, V::SumPairs(V::MulPairs(V::Abs8(w[j]), x)));
    }
    return sum;
  } else {
    // A pair is at most 2 * (2^bits - 1) * 127; as many as stay below 2^15 are added in 16 bits.
    constexpr int kRun = kBits == 4 ? 8 : (kBits == 5 ? 4 : 2);
    I sum = V::ZeroInt();
    for (int first = 0; first < kCount; first += kRun) {
      I run = V::MulPairs(w[first], V::BroadcastBytes4(a + 4 * first));
      for (int j = first + 1; j < first + kRun && j < kCount; ++j) {
        run = V::Add16(run, V::MulPairs(w[j], V::BroadcastBytes4(a + 4 * j)));
      }
      sum = V::AddInt(sum, V::SumPairs(run));
    }
    return sum;
  }
}

template <class V, class Format>
struct FastMatmul {
  using P = Packed<V, Format>;
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kOffsetShift = P::kOffset == 8    ? 3
                                      : P::kOffset == 16 ? 4
                                      : P::kOffset == 32 ? 5
                                                         : 7;

  template <int kCount>
  static F Dot(const I* w, const int8_t* a, const int32_t* sum) {
    I dot = DotCodes<V, Format::kBits, P::kSignedBytes, kCount>(w, a);
    if constexpr (P::kOffset != 0) {
      dot = V::SubInt(dot, V::template ShiftLeft32<kOffsetShift>(V::BroadcastBytes4(sum)));
    }
    return V::ToFloat(dot);
  }

  // kTokens tokens against one row group.
  template <int kTokens>
  static void Tile(const MatmulArgs& args, const uint8_t* group_data, int64_t token, int64_t row) {
    const int64_t groups = args.w.cols / 32;
    const uint8_t* scales = group_data + groups * P::kPayload;
    const ActivationBlock* x = args.xq + token * args.xq_stride;
    F acc[kTokens], acc_min[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = acc_min[t] = V::Zero();
    for (int64_t g = 0; g < groups; ++g) {
      I w[8];
      P::Unpack(group_data + g * P::kPayload, w);
      const typename P::Scales s = P::LoadScales(scales, g);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const ActivationBlock& a = x[t * args.xq_stride + g];
        const F scale = V::Set1(a.scale);
        if constexpr (Format::kHalves) {
          const int32_t sum_high = a.sum - a.sum_low;
          acc[t] = V::Fma(Dot<4>(w, a.q, &a.sum_low), V::Mul(s.low, scale), acc[t]);
          acc[t] = V::Fma(Dot<4>(w + 4, a.q + 16, &sum_high), V::Mul(s.high, scale), acc[t]);
        } else {
          acc[t] = V::Fma(Dot<8>(w, a.q, &a.sum), V::Mul(s.low, scale), acc[t]);
          if constexpr (Format::kHasMin) {
            acc_min[t] = V::Fma(s.min, V::Set1(a.scaled_sum), acc_min[t]);
          }
        }
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      if constexpr (Format::kHasMin) acc[t] = V::Add(acc[t], acc_min[t]);
      Put(args, acc[t], token + t, row);
    }
  }

  static void Put(const MatmulArgs& args, F value, int64_t token, int64_t row) {
    float* y = args.y + token * args.y_stride + row;
    if (row + V::kLanes <= args.w.rows) {
      if (args.bias != nullptr) value = V::Add(value, V::Load(args.bias + row));
      V::Store(y, value);
      return;
    }
    float lanes[V::kLanes];
    V::Store(lanes, value);
    for (int64_t i = 0; row + i < args.w.rows; ++i) {
      y[i] = args.bias != nullptr ? lanes[i] + args.bias[row + i] : lanes[i];
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    constexpr int kTile = V::kLanes == 16 ? 8 : 4;
    const int64_t groups = args.w.cols / 32;
    const int64_t bytes = P::RowGroupBytes(groups);
    const auto* packed = static_cast<const uint8_t*>(args.packed);
    // As many tokens as keep their activations in the second-level cache.
    const int64_t fit =
        (int64_t{256} << 10) / (groups * static_cast<int64_t>(sizeof(ActivationBlock)));
    const int64_t token_block = fit < kTile ? kTile : fit / kTile * kTile;
    for (int64_t first = 0; first < args.num_tokens; first += token_block) {
      const int64_t rest = args.num_tokens - first;
      const int64_t last = first + (rest < token_block ? rest : token_block);
      for (int64_t row = begin; row < end; row += V::kLanes) {
        const uint8_t* data = packed + row / V::kLanes * bytes;
        int64_t t = first;
        for (; t + kTile <= last; t += kTile) Tile<kTile>(args, data, t, row);
        if constexpr (kTile == 8) {
          if (t + 4 <= last) Tile<4>(args, data, t, row), t += 4;
        }
        if (t + 2 <= last) Tile<2>(args, data, t, row), t += 2;
        if (t < last) Tile<1>(args, data, t, row);
      }
    }
  }
};

template <class V>
void MatmulFast(const MatmulArgs& args, int64_t begin, int64_t end) {
  const bool quantized = Formats<V>::Visit(
      args.w.type, [&](auto format) { FastMatmul<V, decltype(format)>::Run(args, begin, end); });
  if (!quantized) ExactMatmul<V>::Run(args, begin, end);
}

}  // namespace rempart::kernels
