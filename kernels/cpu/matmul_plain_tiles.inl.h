// SPDX-License-Identifier: Apache-2.0
// The matmul for BF16 weights through a tile unit that multiplies BF16 (V::MulBFloat16Tiles): 32
// rows by up to 32 tokens at a time, 32 columns in a step. Weights are read as they lie in the
// file; activations are rounded to BF16 and laid out in pairs of columns, one token after the
// other. A sum starts at zero and takes the steps in the order of the columns; within a step the
// order is the unit's. One token goes through the same tiles as many, so its bits do not depend on
// its company (invariant 1 of ops.h); the bits are not those of vdpbf16ps, so a tier has the one or
// the other for every shape. Bytes: the weights once for each 32 tokens, activations once for each
// panel of 64 rows.
#pragma once

#include <cstring>

#include "kernels/ops.h"

namespace rempart::kernels {

template <class V>
struct PlainTileMatmul {
  static constexpr int64_t kTile = 16;  // rows of weights, or tokens, in one register
  static constexpr int64_t kStep = 32;  // columns
  static constexpr int64_t kRows = 2 * kTile;
  static constexpr int64_t kTokens = 2 * kTile;
  static constexpr int64_t kPanelRows = 64;
  static constexpr int64_t kColBlock = 1024;

  using Input = uint16_t[2][kTile][kTile][2];  // [token tile, pair of columns, token, 2]
  using Sums = float[2][kTile][kTile];         // [token tile, row, token]
  struct Space {
    alignas(64) Input x[kColBlock / kStep];
    alignas(64) uint16_t rounded[kColBlock];
    alignas(64) uint16_t edge[kRows][kStep];
    alignas(64) Sums sums[kPanelRows / kRows][2];  // [32 rows, row tile]
  };

  // Columns [col, col + cols) of `tokens` tokens, zeros up to a whole step behind them. Lanes of
  // tokens that are not there are left as they are.
  static void LoadInput(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t col,
                        int64_t cols, Space* space) {
    const int64_t steps = (cols + kStep - 1) / kStep;
    for (int64_t t = 0; t < tokens; ++t) {
      V::RoundToBFloat16(args.x + (token + t) * args.x_stride + col, cols, space->rounded);
      for (int64_t c = cols; c < steps * kStep; ++c) space->rounded[c] = 0;
      for (int64_t step = 0; step < steps; ++step) {
        for (int64_t pair = 0; pair < kTile; ++pair) {
          std::memcpy(space->x[step][t / kTile][pair][t % kTile],
                      space->rounded + step * kStep + 2 * pair, 2 * sizeof(uint16_t));
        }
      }
    }
  }

  // Rows from `row` on, as far as there are, columns [col, col + cols) of them; zeros elsewhere.
  static void CopyEdge(const MatmulArgs& args, int64_t row, int64_t col, int64_t cols,
                       Space* space) {
    const auto* w = static_cast<const uint16_t*>(args.w.data);
    std::memset(space->edge, 0, sizeof(space->edge));
    for (int64_t r = 0; r < kRows && row + r < args.w.rows; ++r) {
      std::memcpy(space->edge[r], w + (row + r) * args.w.cols + col,
                  static_cast<size_t>(cols) * sizeof(uint16_t));
    }
  }

  // Columns [col, col + cols) of kRows rows onto their sums.
  template <int kTokenTiles>
  static void Accumulate(const MatmulArgs& args, int64_t row, int64_t col, int64_t cols,
                         Space* space, Sums* sums) {
    int64_t step = 0;
    if (row + kRows <= args.w.rows) {
      const auto* w = static_cast<const uint16_t*>(args.w.data) + row * args.w.cols + col;
      step = cols / kStep;
      V::template MulBFloat16Tiles<kTokenTiles>(w, args.w.cols, step, space->x, sums);
    }
    for (; step * kStep < cols; ++step) {
      const int64_t rest = cols - step * kStep;
      CopyEdge(args, row, col + step * kStep, rest < kStep ? rest : kStep, space);
      V::template MulBFloat16Tiles<kTokenTiles>(space->edge[0], kStep, 1, space->x + step, sums);
    }
  }

  // Rows [begin, end), at most kPanelRows, against tokens [token, token + tokens), at most kTokens.
  static void Block(const MatmulArgs& args, int64_t begin, int64_t end, int64_t token,
                    int64_t tokens, Space* space) {
    std::memset(space->sums, 0, sizeof(space->sums));
    for (int64_t col = 0; col < args.w.cols; col += kColBlock) {
      const int64_t cols = args.w.cols - col < kColBlock ? args.w.cols - col : kColBlock;
      LoadInput(args, token, tokens, col, cols, space);
      for (int64_t row = begin; row < end; row += kRows) {
        Sums* sums = space->sums[(row - begin) / kRows];
        if (tokens <= kTile) {
          Accumulate<1>(args, row, col, cols, space, sums);
        } else {
          Accumulate<2>(args, row, col, cols, space, sums);
        }
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      float* y = args.y + (token + t) * args.y_stride;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t r = (row - begin) % kRows;
        const float sum =
            space->sums[(row - begin) / kRows][r / kTile][t / kTile][r % kTile][t % kTile];
        y[row] = args.bias != nullptr ? sum + args.bias[row] : sum;
      }
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    Space space;
    std::memset(space.x, 0, sizeof(space.x));
    V::BeginBFloat16Tiles();
    for (int64_t row = begin; row < end; row += kPanelRows) {
      const int64_t row_end = end - row < kPanelRows ? end : row + kPanelRows;
      for (int64_t token = 0; token < args.num_tokens; token += kTokens) {
        const int64_t rest = args.num_tokens - token;
        Block(args, row, row_end, token, rest < kTokens ? rest : kTokens, &space);
      }
    }
    V::EndTiles();
  }
};

}  // namespace rempart::kernels
