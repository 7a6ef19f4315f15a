// SPDX-License-Identifier: Apache-2.0
// y[t, r] = dot(x[t, :], w[r, :]) for F32, F16 and BF16 weights, which are read as they lie in the
// file: lanes run along the columns, one accumulator per (row, token), its lanes added pairwise at
// the end. Whatever the batch, a result is the same sums in the same order, to the bit: tiles only
// decide which accumulators are in registers together.
// Two arithmetics (ops.h says which op has which):
//   widened: weights to F32 (a shift, or F16C), fused multiply-add with F32 activations;
//   paired:  BF16 weights and activations rounded to BF16, two columns to a lane: vdpbf16ps.
//            Tiers without it multiply the same rounded activations the widened way.
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
  static void Step(const Weight* const* rows, int64_t c, const Input* x, F (*acc)[kRows]) {
    typename Terms::Vector in[kT];
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) in[t] = Terms::LoadInput(x + t * kColBlock);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Terms::Vector w = Terms::LoadWeights(rows[r] + c);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) acc[t][r] = Terms::MulAdd(w, in[t], acc[t][r]);
    }
  }

  // `cols` columns from rows[r] on. `ahead` elements further lie the rows that come next: the
  // hardware's own look-ahead ends with the page, and rows are about as long as one.
  template <int kT>
  static void Accumulate(const Weight* const* rows, int64_t cols, int64_t ahead, const Input* x,
                         F (*sums)[kRows]) {
    F acc[kT][kRows];
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[t][r] = sums[t][r];
    }
    int64_t c = 0;
    for (; c + kStep <= cols; c += kStep) {
      for (int r = 0; r < kRows; ++r) V::Prefetch(rows[r] + c + ahead);
      Step<kT>(rows, c, x + c, acc);
    }
    if (c < cols) {
      Weight last[kRows][kStep] = {};
      const Weight* from[kRows];
      for (int r = 0; r < kRows; ++r) {
        std::memcpy(last[r], rows[r] + c, static_cast<size_t>(cols - c) * sizeof(Weight));
        from[r] = last[r];
      }
      Step<kT>(from, 0, x + c, acc);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[t][r] = acc[t][r];
    }
  }

  template <int kT>
  static void AccumulateTokens(int64_t tokens, const Weight* const* rows, int64_t cols,
                               int64_t ahead, const Input* x, F (*sums)[kRows]) {
    if (tokens == kT) return Accumulate<kT>(rows, cols, ahead, x, sums);
    if constexpr (kT > 1) AccumulateTokens<kT - 1>(tokens, rows, cols, ahead, x, sums);
  }

  static void Put(const MatmulArgs& args, const F* sums, int64_t token, int64_t row, int64_t rows) {
    float values[kRows];
    V::Sum4(sums, values);
    float* y = args.y + token * args.y_stride + row;
    for (int64_t r = 0; r < rows; ++r) {
      y[r] = args.bias != nullptr ? values[r] + args.bias[row + r] : values[r];
    }
  }

  // Rows [begin, end), at most kPanelRows, against tokens [token, token + tokens), at most kTokens.
  static void Block(const MatmulArgs& args, int64_t begin, int64_t end, int64_t token,
                    int64_t tokens, Tile* tile) {
    const auto* w = static_cast<const Weight*>(args.w.data);
    for (auto& row_sums : tile->sums) {
      for (auto& token_sums : row_sums) {
        for (F& sum : token_sums) sum = V::Zero();
      }
    }
    const int64_t block = tokens == 1 ? kColBlock : kColsOfSeveral;
    for (int64_t col = 0; col < args.w.cols; col += block) {
      const int64_t cols = args.w.cols - col < block ? args.w.cols - col : block;
      LoadTile(args, token, tokens, col, cols, tile);
      for (int64_t row = begin; row < end; row += kRows) {
        const Weight* rows[kRows];
        for (int64_t r = 0; r < kRows; ++r) {
          // Rows beyond the last are computed from it, and not stored.
          rows[r] = w + (row + r < end ? row + r : end - 1) * args.w.cols + col;
        }
        AccumulateTokens<kTokens>(tokens, rows, cols, kRows * args.w.cols, tile->x[0],
                                  tile->sums[(row - begin) / kRows]);
      }
    }
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t rows = end - row < kRows ? end - row : kRows;
      for (int64_t t = 0; t < tokens; ++t) {
        Put(args, tile->sums[(row - begin) / kRows][t], token + t, row, rows);
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
  } else if constexpr (kRounds && V::kHasDotBFloat16) {
    PlainMatmul<V, PairedTerms<V>, true>::Run(args, begin, end);
  } else {
    PlainMatmul<V, WidenedTerms<V, DType::kBF16>, kRounds>::Run(args, begin, end);
  }
}

}  // namespace rempart::kernels
