// SPDX-License-Identifier: Apache-2.0
// y[t, r] = sum over groups g of  d[r,g] * da[t,g] * sum_i (w - offset)[r,g,i] * a[t,g,i]
//                               + min[r,g] * da[t,g] * sum_i a[t,g,i]
// The inner sums are exact in int32; the outer ones are added in the order of g, whatever the
// number of tokens: a token's result does not depend on the batch. Here the codes go from memory
// to registers for a few tokens (bytes: the packed weights once; bound: memory); for more,
// matmul_tiles.inl.h, or matmul_bytes.inl.h for codes that are bytes already.
#pragma once

#include <type_traits>

#include "kernels/cpu/matmul_bytes.inl.h"
#include "kernels/cpu/matmul_plain.inl.h"
#include "kernels/cpu/matmul_tiles.inl.h"

namespace rempart::kernels {

template <class V, class Format>
struct FastMatmul {
  using P = Packed<V, Format>;
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int64_t kFewTokens = 3;
  // For more; the tile unit reads panels.
  using Tiles = std::conditional_t<Format::kBits == 8 && V::kTileTokens == 0, ByteTiles<V, Format>,
                                   TileMatmul<V, Format>>;

  template <int kCount>
  static F Dot(const I* w, const int8_t* a, const int32_t* sum) {
    I dot = DotCodes<V, Format::kBits, P::kSignedBytes, kCount>(w, a);
    if constexpr (P::kOffset != 0) {
      constexpr int kShift = OffsetShift(P::kOffset);
      dot = V::SubInt(dot, V::template ShiftLeft32<kShift>(V::BroadcastBytes4(sum)));
    }
    return V::ToFloat(dot);
  }

  // kTokens tokens against one row group.
  template <int kTokens>
  static void RowGroup(const MatmulArgs& args, const uint8_t* group_data, int64_t row) {
    const int64_t groups = args.w.cols / 32;
    F acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::Zero();
    const uint8_t* block = group_data;
    for (int64_t first = 0; first < groups; first += P::kBlockGroups) {
      const int64_t count = P::GroupsOfBlock(first, groups);
      Block<kTokens>(block, count, args.xq + first, args.xq_stride, acc);
      block += P::BlockBytes(count);
    }
    for (int t = 0; t < kTokens; ++t) PutLanes<V>(args, acc[t], t, row);
  }

  // Adds `groups` column groups, which begin at x, to the sums of kTokens tokens.
  template <int kTokens>
  static void Block(const uint8_t* block, int64_t groups, const ActivationBlock* x,
                    int64_t x_stride, F* acc) {
    const uint8_t* payload = block + P::ScalesBytes(groups);
    for (int64_t g = 0; g < groups; ++g) {
      I w[8];
      P::Prefetch(block, g);
      P::Unpack(payload + g * P::kPayload, w);
      const typename P::Scales s = P::LoadScales(block, g);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const ActivationBlock& a = x[t * x_stride + g];
        const F scale = V::Set1(a.scale);
        if constexpr (Format::kHalves) {
          acc[t] = V::Fma(Dot<4>(w, a.q, &a.sum_low), V::Mul(s.low, scale), acc[t]);
          acc[t] = V::Fma(Dot<4>(w + 4, a.q + 16, &a.sum_high), V::Mul(s.high, scale), acc[t]);
        } else {
          acc[t] = V::Fma(Dot<8>(w, a.q, &a.sum), V::Mul(s.low, scale), acc[t]);
        }
        if constexpr (Format::kHasMin && !Format::kHalves) {
          acc[t] = V::Fma(s.min, V::Set1(a.scaled_sum), acc[t]);
        }
        if constexpr (Format::kHasMin && Format::kHalves) {
          acc[t] = V::Fma(s.min, ScaledSum<V>(scale, &a.sum_low), acc[t]);
          acc[t] = V::Fma(s.min_high, ScaledSum<V>(scale, &a.sum_high), acc[t]);
        }
      }
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    if (args.num_tokens > kFewTokens) return Tiles::Run(args, begin, end);
    const int64_t bytes = P::RowGroupBytes(args.w.cols / 32);
    const auto* packed = static_cast<const uint8_t*>(args.packed);
    for (int64_t row = begin; row < end; row += V::kLanes) {
      const uint8_t* data = packed + row / V::kLanes * bytes;
      if (args.num_tokens == 1) RowGroup<1>(args, data, row);
      if (args.num_tokens == 2) RowGroup<2>(args, data, row);
      if (args.num_tokens == 3) RowGroup<3>(args, data, row);
    }
  }
};

template <class V>
void MatmulFast(const MatmulArgs& args, int64_t begin, int64_t end) {
  const bool quantized = Formats<V>::Visit(
      args.w.type, [&](auto format) { FastMatmul<V, decltype(format)>::Run(args, begin, end); });
  if (!quantized) MatmulPlain<V, true>(args, begin, end);
}

}  // namespace rempart::kernels
