// SPDX-License-Identifier: Apache-2.0
// y[t, r] = dot(x[t, :], w[r, :]) with F32 activations: lanes run along the columns, one
// accumulator per (token, row), added up pairwise at the end. The order does not depend on the
// batch. Quantised weights are dequantised 256 columns at a time into the first-level cache, once
// per block of tokens; plain ones take matmul_plain.inl.h.
#pragma once

#include "kernels/cpu/dequantize.inl.h"
#include "kernels/cpu/matmul_plain.inl.h"

namespace rempart::kernels {

template <class V>
struct ExactMatmul {
  using F = typename V::F;
  static constexpr int kRows = V::kLanes == 16 ? 4 : 2;
  static constexpr int kTokens = 4;
  static constexpr int64_t kTokenBlock = 32;
  static constexpr int64_t kColBlock = 256;

  struct Sums {
    F of[kTokenBlock][kRows];
    float tail[kTokenBlock][kRows];  // columns beyond the last whole vector
  };

  // Adds `vectors` vectors of columns of kT tokens to their sums.
  template <int kT>
  static void Accumulate(const float* x, int64_t x_stride, const float (*w)[kColBlock],
                         int64_t vectors, F (*sums)[kRows]) {
    F acc[kT][kRows];
    for (int t = 0; t < kT; ++t) {
      for (int r = 0; r < kRows; ++r) acc[t][r] = sums[t][r];
    }
    for (int64_t v = 0; v < vectors; ++v) {
      F weights[kRows];
      for (int r = 0; r < kRows; ++r) weights[r] = V::Load(w[r] + v * V::kLanes);
      for (int t = 0; t < kT; ++t) {
        const F in = V::Load(x + t * x_stride + v * V::kLanes);
        for (int r = 0; r < kRows; ++r) acc[t][r] = V::Fma(in, weights[r], acc[t][r]);
      }
    }
    for (int t = 0; t < kT; ++t) {
      for (int r = 0; r < kRows; ++r) sums[t][r] = acc[t][r];
    }
  }

  // Rows [row, row + rows) against tokens [token, token + count).
  static void Block(const MatmulArgs& args, int64_t row, int64_t rows, int64_t token,
                    int64_t count) {
    alignas(64) float w[kRows][kColBlock] = {};
    Sums sums;
    for (int64_t t = 0; t < count; ++t) {
      for (int r = 0; r < kRows; ++r) sums.of[t][r] = V::Zero(), sums.tail[t][r] = 0.0f;
    }
    for (int64_t col = 0; col < args.w.cols; col += kColBlock) {
      const int64_t cols = args.w.cols - col < kColBlock ? args.w.cols - col : kColBlock;
      for (int64_t r = 0; r < rows; ++r) {
        Dequantizer<V>::Elements(args.w.type, Dequantizer<V>::Row(args.w, row + r), col, cols,
                                 w[r]);
      }
      const float* x = args.x + token * args.x_stride + col;
      const int64_t vectors = cols / V::kLanes;
      int64_t t = 0;
      for (; t + kTokens <= count; t += kTokens) {
        Accumulate<kTokens>(x + t * args.x_stride, args.x_stride, w, vectors, sums.of + t);
      }
      for (; t < count; ++t) {
        Accumulate<1>(x + t * args.x_stride, args.x_stride, w, vectors, sums.of + t);
      }
      for (int64_t c = vectors * V::kLanes; c < cols; ++c) {
        for (t = 0; t < count; ++t) {
          for (int r = 0; r < kRows; ++r) sums.tail[t][r] += x[t * args.x_stride + c] * w[r][c];
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        const float sum = V::Sum(sums.of[t][r]) + sums.tail[t][r];
        args.y[(token + t) * args.y_stride + row + r] =
            args.bias != nullptr ? sum + args.bias[row + r] : sum;
      }
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    if (!IsQuantized(args.w.type)) return MatmulPlain<V, false>(args, begin, end);
    for (int64_t token = 0; token < args.num_tokens; token += kTokenBlock) {
      const int64_t rest = args.num_tokens - token;
      for (int64_t row = begin; row < end; row += kRows) {
        Block(args, row, end - row < kRows ? end - row : kRows, token,
              rest < kTokenBlock ? rest : kTokenBlock);
      }
    }
  }
};

}  // namespace rempart::kernels
