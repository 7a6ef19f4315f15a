// SPDX-License-Identifier: Apache-2.0
// The int8 matmul for several tokens over weights that lie in memory as the multiplication takes
// them, in bytes. No panel: a block of 256 columns of kRowGroups row groups passes by all tokens of
// a token block, kTokens at a time, and stays in the first-level cache meanwhile; the first tile of
// tokens fetches what follows. Formula and order of additions as in matmul_fast.inl.h, to the bit.
// Bound: vector operations. With byte dot products one for 4 columns; else a sign, two
// multiplications and an addition. Per 32 columns one conversion, one product of scales and one
// fused addition.
#pragma once

#include "kernels/cpu/dot_codes.inl.h"

namespace rempart::kernels {

template <class V, class Format>
struct ByteTiles {
  using P = Packed<V, Format>;
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kL = V::kLanes;
  static constexpr int kRowGroups = kL == 16 && V::kHasDotBytes ? 2 : 1;
  static constexpr int kTokens = 6;
  static constexpr int64_t kTokenBlock = 96;
  using TokenSums = float[kRowGroups][kL];

  // Row groups that neighbour each other.
  struct Rows {
    const uint8_t* packed;
    int64_t bytes;  // from one to the next
    int64_t groups;
    // Of signed weights of a block, for all tiles of tokens but the first.
    uint8_t (*magnitudes)[8][V::kBytes];
  };

  // dot[t][r] = the exact product of a column group with kT tokens. The first tile makes
  // magnitudes.
  template <int kT, bool kFirst>
  static void Dot(const uint8_t* payload, int64_t stride, uint8_t (*magnitudes)[V::kBytes],
                  const ActivationBlock* x, int64_t x_stride, I (*dot)[kRowGroups]) {
    if constexpr (!P::kSignedBytes) {
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        for (int r = 0; r < kRowGroups; ++r) {
          dot[t][r] = V::BroadcastBytes4(&x[t * x_stride].minus_sum);
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      I w[kRowGroups], magnitude;
      for (int r = 0; r < kRowGroups; ++r) {
        w[r] = V::LoadBytes(payload + r * stride + j * V::kBytes);
      }
      if constexpr (P::kSignedBytes) {
        magnitude = kFirst ? V::Abs8(w[0]) : V::LoadBytes(magnitudes[j]);
        if constexpr (kFirst) V::StoreBytes(magnitudes[j], magnitude);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I a = V::BroadcastBytes4(x[t * x_stride].q + 4 * j);
        if constexpr (P::kSignedBytes) {
          // |w| <= 128 and |a| <= 127: no second pair of products fits into 16 bits.
          const I sum = V::SumPairs(V::MulPairs(magnitude, V::Sign8(a, w[0])));
          dot[t][0] = j == 0 ? sum : V::AddInt(dot[t][0], sum);
          V::Keep(dot[t][0]);
        } else {
          for (int r = 0; r < kRowGroups; ++r) dot[t][r] = V::DotBytes(dot[t][r], w[r], a);
        }
      }
    }
  }

  // Adds the block of column groups [first, first + width) to the sums of kT tokens, which wait in
  // memory: registers are needed for the exact sums.
  template <int kT, bool kFirst>
  static void Tile(const Rows& rows, int64_t first, int64_t width, const ActivationBlock* x,
                   int64_t x_stride, TokenSums* sums) {
    const int64_t offset = P::BlockOffset(first);
    const uint8_t* block = rows.packed + offset;
    const uint8_t* payload = block + P::ScalesBytes(width);
    // What follows a row group is read beside it.
    const bool is_beside = offset + P::kPrefetchBytes >= P::RowGroupBytes(rows.groups);
    const int64_t ahead = P::kPrefetchBytes + (is_beside ? (kRowGroups - 1) * rows.bytes : 0);
    for (int64_t g = 0; g < width; ++g, ++x, payload += P::kPayload) {
      F scales[kRowGroups];
      for (int r = 0; r < kRowGroups; ++r) {
        if constexpr (kFirst) P::Prefetch(block + r * rows.bytes, g, ahead);
        scales[r] = P::LoadScales(block + r * rows.bytes, g).low;
      }
      I dot[kT][kRowGroups];
      Dot<kT, kFirst>(payload, rows.bytes, rows.magnitudes[g], x, x_stride, dot);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const F scale = V::Set1(x[t * x_stride].scale);
        for (int r = 0; r < kRowGroups; ++r) {
          const F sum = V::Load(sums[t][r]);
          V::Store(sums[t][r], V::Fma(V::ToFloat(dot[t][r]), V::Mul(scales[r], scale), sum));
        }
      }
    }
  }

  // A tile of at most kT tokens.
  template <int kT, bool kFirst>
  static void TileOf(int64_t tokens, const Rows& rows, int64_t first, int64_t width,
                     const ActivationBlock* x, int64_t x_stride, TokenSums* sums) {
    if (tokens >= kT) return Tile<kT, kFirst>(rows, first, width, x, x_stride, sums);
    if constexpr (kT > 1) TileOf<kT - 1, kFirst>(tokens, rows, first, width, x, x_stride, sums);
  }

  // Rows of `row_groups` row groups from `row` on against tokens [token, token + count).
  static void Block(const MatmulArgs& args, int64_t row, int row_groups, int64_t token,
                    int64_t count, TokenSums* sums) {
    alignas(64) uint8_t magnitudes[P::kBlockGroups][8][V::kBytes];
    const int64_t groups = args.w.cols / 32;
    const int64_t bytes = P::RowGroupBytes(groups);
    // An odd row group is computed twice and stored once.
    const Rows rows = {static_cast<const uint8_t*>(args.packed) + row / kL * bytes,
                       row_groups < kRowGroups ? 0 : bytes, groups, magnitudes};
    std::memset(sums, 0, static_cast<size_t>(count) * sizeof(*sums));
    // A column of y: a cache line and a page of its own for every token.
    for (int64_t t = 0; t < count; ++t) {
      for (int r = 0; r < row_groups; ++r) {
        V::PrefetchToWrite(args.y + (token + t) * args.y_stride + row + r * kL);
      }
    }
    for (int64_t first = 0; first < groups; first += P::kBlockGroups) {
      const int64_t width = P::GroupsOfBlock(first, groups);
      const ActivationBlock* x = args.xq + token * args.xq_stride + first;
      TileOf<kTokens, true>(count, rows, first, width, x, args.xq_stride, sums);
      for (int64_t t = kTokens; t < count; t += kTokens) {
        TileOf<kTokens, false>(count - t, rows, first, width, x + t * args.xq_stride,
                               args.xq_stride, sums + t);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      for (int r = 0; r < row_groups; ++r) {
        PutLanes<V>(args, V::Load(sums[t][r]), token + t, row + r * kL);
      }
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    alignas(64) TokenSums sums[kTokenBlock];
    for (int64_t token = 0; token < args.num_tokens; token += kTokenBlock) {
      const int64_t rest = args.num_tokens - token;
      for (int64_t row = begin; row < end; row += kRowGroups * kL) {
        const int row_groups = end - row > kL ? kRowGroups : 1;
        Block(args, row, row_groups, token, rest < kTokenBlock ? rest : kTokenBlock, sums);
      }
    }
  }
};

}  // namespace rempart::kernels
