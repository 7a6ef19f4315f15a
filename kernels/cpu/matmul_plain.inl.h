// SPDX-License-Identifier: Apache-2.0
// y[t, r] = dot(x[t, :], w[r, :]) for F32, F16 and BF16 weights, which are read as they lie in the
// file: lanes run along the columns, one accumulator per (row, token), its lanes added pairwise at
// the end. Whatever the batch, a result is the same sums in the same order, to the bit: tiles only
// decide which accumulators are in registers together.
// Two arithmetics (ops.h says which op has which):
//   widened: weights to F32 (a shift, or F16C), fused multiply-add with F32 activations;
//   paired:  BF16 weights and activations rounded to BF16, two columns to a lane: vdpbf16ps.
//            Tiers without it multiply the same rounded activations the widened way.
//            Where the caller has rounded them already (Ops::round), not each panel does it again.
// Bytes: the weights once per panel of rows, activations once per panel. Bound: memory for a few
// tokens, multiplications for many; a tile of 4 rows by 6 tokens loads 10 vectors for 24 products.
#pragma once

#include <type_traits>

#include "kernels/cpu/dequantize.inl.h"
#include "kernels/cpu/matmul_plain_tiles.inl.h"

namespace rempart::kernels {

template <class V, DType kType>
struct WidenedTerms {
  using Weight = std::conditional_t<kType == DType::kF32, float, uint16_t>;
  using Input = float;
  using Vector = typename V::F;
  static constexpr int64_t kStep = V::kLanes;  // columns of a vector
  static Vector LoadWeights(const Weight* w) {
    if constexpr (kType == DType::kF32) return V::Load(w);
    if constexpr (kType == DType::kF16) return V::LoadHalf(w);
    if constexpr (kType == DType::kBF16) return V::LoadBFloat16(w);
  }
  static Vector LoadInput(const float* x) { return V::Load(x); }
  static typename V::F MulAdd(Vector w, Vector x, typename V::F sum) { return V::Fma(x, w, sum); }
};

template <class V>
struct PairedTerms {
  using Weight = uint16_t;
  using Input = uint16_t;
  using Vector = typename V::I;
  static constexpr int64_t kStep = 2 * V::kLanes;
  static Vector LoadWeights(const uint16_t* w) { return V::LoadBytes(w); }
  static Vector LoadInput(const uint16_t* x) { return V::LoadBytes(x); }
  static typename V::F MulAdd(Vector w, Vector x, typename V::F sum) {
    return V::DotBFloat16(sum, w, x);
  }
};

template <class V, class Terms, bool kRounds>
struct PlainMatmul {
  using F = typename V::F;
  using Weight = typename Terms::Weight;
  using Input = typename Terms::Input;
  static constexpr int64_t kStep = Terms::kStep;
  static constexpr int kRows = 4;
  static constexpr int kTokens = V::kLanes == 16 ? 6 : 3;
  // Columns of a tile of activations: it stays in the first-level cache while rows pass by.
  static constexpr int64_t kColBlock = sizeof(Input) == 2 ? 2048 : 1024;
  // The same where several tokens pass by: in lines of 4 KiB, rows and tokens meet in the same
  // sets of the cache, and more of them than these hold.
  static constexpr int64_t kColsOfSeveral = 1024;
  static constexpr int64_t kPanelRows = 64;
  // Of a panel's weights: it stays in the second-level cache while tokens pass by.
  static constexpr int64_t kPanelBytes = 512 * 1024;

  struct Tile {
    alignas(64) Input x[kTokens][kColBlock];
    F sums[kPanelRows / kRows][kTokens][kRows];
  };

  // kRows rows against some tokens, over some columns of both.
  struct Part {
    const Weight* rows[kRows];
    const Input* x;
    int64_t x_stride;
    int64_t cols;
    int64_t ahead;  // elements further lie the rows that come next
    bool is_first;  // of the parts that make a sum
    bool is_last;
    int64_t row, num_rows, token;  // of the result
  };

  // Columns [col, col + cols) of kTokens or fewer tokens as the products read them, zeros up to a
  // whole vector behind them.
  static void LoadTile(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t col,
                       int64_t cols, Tile* tile) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* x = args.x + (token + t) * args.x_stride + col;
      Input* to = tile->x[t];
      if constexpr (sizeof(Input) == 2) {
        V::RoundToBFloat16(x, cols, to);
      } else if constexpr (kRounds) {
        for (int64_t c = 0; c < cols; ++c) to[c] = BFloat16ToFloat(FloatToBFloat16(x[c]));
      } else {
        std::memcpy(to, x, static_cast<size_t>(cols) * sizeof(float));
      }
      for (int64_t c = cols; c % kStep != 0; ++c) to[c] = 0;
    }
  }

  // One vector of columns of kT tokens and kRows rows onto their sums.
  template <int kT>
  static void Step(const Weight* const* rows, int64_t c, const Input* x, int64_t x_stride,
                   F (*acc)[kRows]) {
    typename Terms::Vector in[kT];
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) in[t] = Terms::LoadInput(x + t * x_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Terms::Vector w = Terms::LoadWeights(rows[r] + c);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) acc[t][r] = Terms::MulAdd(w, in[t], acc[t][r]);
    }
  }

  // The hardware's own look-ahead ends with the page, and rows are about as long as one: so the
  // rows that come next are asked for.
  template <int kT>
  static void Accumulate(const MatmulArgs& args, const Part& part, F (*sums)[kRows]) {
    F acc[kT][kRows];
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[t][r] = part.is_first ? V::Zero() : sums[t][r];
    }
    int64_t c = 0;
    for (; c + kStep <= part.cols; c += kStep) {
      for (int r = 0; r < kRows; ++r) V::Prefetch(part.rows[r] + c + part.ahead);
      Step<kT>(part.rows, c, part.x + c, part.x_stride, acc);
    }
    if (c < part.cols) {
      Weight last[kRows][kStep] = {};
      const Weight* from[kRows];
      for (int r = 0; r < kRows; ++r) {
        std::memcpy(last[r], part.rows[r] + c, static_cast<size_t>(part.cols - c) * sizeof(Weight));
        from[r] = last[r];
      }
      Step<kT>(from, 0, part.x + c, part.x_stride, acc);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
      if (part.is_last) {
        Put(args, acc[t], part.token + t, part.row, part.num_rows);
      } else {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums[t][r] = acc[t][r];
      }
    }
  }

  template <int kT>
  static void AccumulateTokens(const MatmulArgs& args, int64_t tokens, const Part& part,
                               F (*sums)[kRows]) {
    if (tokens == kT) return Accumulate<kT>(args, part, sums);
    if constexpr (kT > 1) AccumulateTokens<kT - 1>(args, tokens, part, sums);
  }

  static void Put(const MatmulArgs& args, const F* sums, int64_t token, int64_t row, int64_t rows) {
    float values[kRows];
    V::Sum4(sums, values);
    float* y = args.y + token * args.y_stride + row;
    if (rows == kRows && args.bias == nullptr) {
      std::memcpy(y, values, sizeof(values));
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      y[r] = args.bias != nullptr ? values[r] + args.bias[row + r] : values[r];
    }
  }

  // Rows [begin, end), at most kPanelRows, against tokens [token, token + tokens), at most kTokens.
  static void Block(const MatmulArgs& args, int64_t begin, int64_t end, int64_t token,
                    int64_t tokens, Tile* tile) {
    const auto* w = static_cast<const Weight*>(args.w.data);
    const int64_t block = tokens == 1 ? kColBlock : kColsOfSeveral;
    Part part;
    part.token = token;
    part.ahead = kRows * args.w.cols;
    for (int64_t col = 0; col < args.w.cols; col += block) {
      part.cols = args.w.cols - col < block ? args.w.cols - col : block;
      part.is_first = col == 0;
      part.is_last = col + part.cols == args.w.cols;
      part.x = tile->x[0];
      part.x_stride = kColBlock;
      bool is_rounded = false;
      if constexpr (sizeof(Input) == 2) {
        is_rounded = args.x_rounded != nullptr;
        if (is_rounded) {
          part.x = args.x_rounded + token * args.x_rounded_stride + col;
          part.x_stride = args.x_rounded_stride;
        }
      }
      if (!is_rounded) LoadTile(args, token, tokens, col, part.cols, tile);
      for (int64_t row = begin; row < end; row += kRows) {
        part.row = row;
        part.num_rows = end - row < kRows ? end - row : kRows;
        for (int64_t r = 0; r < kRows; ++r) {
          // Rows beyond the last are computed from it, and not stored.
          part.rows[r] = w + (row + r < end ? row + r : end - 1) * args.w.cols + col;
        }
        AccumulateTokens<kTokens>(args, tokens, part, tile->sums[(row - begin) / kRows]);
      }
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    Tile tile;
    const int64_t row_bytes = args.w.cols * static_cast<int64_t>(sizeof(Weight));
    int64_t panel = kPanelRows;
    while (panel > kRows && panel * row_bytes > kPanelBytes) panel /= 2;
    for (int64_t row = begin; row < end; row += panel) {
      const int64_t row_end = end - row < panel ? end : row + panel;
      for (int64_t token = 0; token < args.num_tokens; token += kTokens) {
        const int64_t rest = args.num_tokens - token;
        Block(args, row, row_end, token, rest < kTokens ? rest : kTokens, &tile);
      }
    }
  }
};

// Whether matmul_fast over BF16 weights reads activations that RoundTokens has rounded.
template <class V>
inline constexpr bool kReadsRounded = V::kHasDotBFloat16 && !V::kHasBFloat16Tiles;

template <class V>
void RoundTokens(const float* x, int64_t x_stride, int64_t cols, uint16_t* to, int64_t to_stride,
                 int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    uint16_t* row = to + t * to_stride;
    V::RoundToBFloat16(x + t * x_stride, cols, row);
    for (int64_t c = cols; c % PairedTerms<V>::kStep != 0; ++c) row[c] = 0;
  }
}

// For weights that are not quantised. kRounds: activations that meet BF16 weights are rounded to
// BF16.
template <class V, bool kRounds>
void MatmulPlain(const MatmulArgs& args, int64_t begin, int64_t end) {
  if (args.w.type == DType::kF32) {
    PlainMatmul<V, WidenedTerms<V, DType::kF32>, false>::Run(args, begin, end);
  } else if (args.w.type == DType::kF16) {
    PlainMatmul<V, WidenedTerms<V, DType::kF16>, false>::Run(args, begin, end);
  } else if constexpr (kRounds && V::kHasBFloat16Tiles) {
    PlainTileMatmul<V>::Run(args, begin, end);
  } else if constexpr (kRounds && kReadsRounded<V>) {
    PlainMatmul<V, PairedTerms<V>, true>::Run(args, begin, end);
  } else {
    PlainMatmul<V, WidenedTerms<V, DType::kBF16>, kRounds>::Run(args, begin, end);
  }
}

}  // namespace rempart::kernels
