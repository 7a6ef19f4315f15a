// SPDX-License-Identifier: Apache-2.0
// Matmul: products of many tokens on the tensor cores, for every weight format. A block computes a
// tile of kTileTokens x 128; per step of 64 columns it brings the activations (asynchronous copies)
// and the weights (BF16 by asynchronous copies, others decoded to BF16 in registers) into the half
// of shared memory that the tensor cores do not read, then swaps the halves.
//
// Shared rows are 64 + 8 elements long, 144 bytes: eight rows that ldmatrix reads together fall
// into different banks. The order of the sum over columns is the same for every tile size.
// Dense formats at large sizes are better served by cuBLASLt; this kernel takes over where
// that library is missing.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/quant_blocks.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 128;  // of the weights
constexpr int kTileCols = 64;
constexpr int kStride = kTileCols + 8;

template <int kTileTokens>
struct Shared {
  uint16_t x[2][kTileTokens][kStride];
  uint16_t w[2][kTileRows][kStride];
};

// How the eight warps share a tile.
template <int kTileTokens>
struct WarpTile {
  static constexpr int kTokenWarps = kTileTokens >= 64 ? 2 : 1;
  static constexpr int kRowWarps = 8 / kTokenWarps;
  static constexpr int kTokens = kTileTokens / kTokenWarps;
  static constexpr int kRows = kTileRows / kRowWarps;
};

template <int kTileTokens>
REMPART_DEVICE void LoadX(const DeviceMatmulArgs& args, int64_t token, int64_t col,
                          uint16_t (&to)[kTileTokens][kStride]) {
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kTileTokens * kTileCols / 8;
       chunk += kThreads) {
    const int row = chunk / (kTileCols / 8);
    const int at = chunk % (kTileCols / 8) * 8;
    const bool is_inside = token + row < args.num_tokens && col + at < args.w.cols;
    const uint16_t* from = args.x + (is_inside ? (token + row) * args.x_stride + col + at : 0);
    CopyAsync16(&to[row][at], from, is_inside);
  }
}

template <class WeightDecoder>
REMPART_DEVICE void LoadW(const DeviceMatmulArgs& args, int64_t first, int64_t col,
                          uint16_t (&to)[kTileRows][kStride]) {
  REMPART_UNROLL
  for (int i = 0; i < kTileRows * kTileCols / 8 / kThreads; ++i) {
    const int chunk = static_cast<int>(threadIdx.x) + i * kThreads;
    const int row = chunk / (kTileCols / 8);
    const int at = chunk % (kTileCols / 8) * 8;
    const bool is_inside = first + row < args.w.rows && col + at < args.w.cols;
    if constexpr (WeightDecoder::kIsBf16) {
      const auto* from = static_cast<const uint16_t*>(args.w.data);
      CopyAsync16(&to[row][at], from + (is_inside ? (first + row) * args.w.cols + col + at : 0),
                  is_inside);
    } else {
      float values[8] = {};
      if (is_inside) WeightDecoder::Decode(args.w, first + row, col + at, values);
      StoreBf16x8(&to[row][at], values);
    }
  }
}

template <int kTileTokens>
REMPART_DEVICE void MultiplyTile(
    const uint16_t (&x)[kTileTokens][kStride], const uint16_t (&w)[kTileRows][kStride],
    float (&sums)[WarpTile<kTileTokens>::kTokens / 16][WarpTile<kTileTokens>::kRows / 8][4]) {
  using Tile = WarpTile<kTileTokens>;
  const int token = WarpIndex() / Tile::kRowWarps * Tile::kTokens;
  const int row = WarpIndex() % Tile::kRowWarps * Tile::kRows;
  const int lane = Lane();
  REMPART_UNROLL
  for (int col = 0; col < kTileCols; col += 16) {
    uint32_t a[Tile::kTokens / 16][4];
    REMPART_UNROLL
    for (int i = 0; i < Tile::kTokens / 16; ++i) {
      LoadMatrix(a[i], &x[token + 16 * i + lane % 16][col + lane / 16 * 8]);
    }
    REMPART_UNROLL
    for (int j = 0; j < Tile::kRows / 16; ++j) {
      uint32_t b[4];
      LoadMatrix(b, &w[row + 16 * j + lane % 8 + lane / 16 * 8][col + lane / 8 % 2 * 8]);
      const uint32_t low[2] = {b[0], b[1]};
      const uint32_t high[2] = {b[2], b[3]};
      REMPART_UNROLL
      for (int i = 0; i < Tile::kTokens / 16; ++i) {
        MmaBf16(sums[i][2 * j], a[i], low);
        MmaBf16(sums[i][2 * j + 1], a[i], high);
      }
    }
  }
}

// Two neighbouring rows of one token.
REMPART_DEVICE void StorePair(const DeviceMatmulArgs& args, int64_t token, int64_t row, float first,
                              float second) {
  if (token >= args.num_tokens || row >= args.w.rows) return;
  const int64_t at = token * args.y_stride + row;
  const bool has_second = row + 1 < args.w.rows;
  if (args.y_is_f32) {
    auto* y = static_cast<float*>(args.y) + at;
    y[0] = first;
    if (has_second) y[1] = second;
  } else {
    auto* y = static_cast<uint16_t*>(args.y) + at;
    if (has_second && at % 2 == 0) {
      *Wide<uint32_t>(y) = PackBf16(first, second);
    } else {
      y[0] = ToBf16(first).bits;
      if (has_second) y[1] = ToBf16(second).bits;
    }
  }
}

template <class WeightDecoder, int kTileTokens>
REMPART_KERNEL(kThreads)
MatmulKernel(DeviceMatmulArgs args) {
  using Tile = WarpTile<kTileTokens>;
  WaitForPrevious();
  LetNextStart();
  auto& shared = *DynamicShared<Shared<kTileTokens>>();
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  float sums[Tile::kTokens / 16][Tile::kRows / 8][4] = {};
  LoadX<kTileTokens>(args, first_token, 0, shared.x[0]);
  LoadW<WeightDecoder>(args, first_row, 0, shared.w[0]);
  CommitCopies();
  int half = 0;
  for (int64_t col = 0; col < args.w.cols; col += kTileCols, half ^= 1) {
    if (col + kTileCols < args.w.cols) {
      LoadX<kTileTokens>(args, first_token, col + kTileCols, shared.x[half ^ 1]);
      LoadW<WeightDecoder>(args, first_row, col + kTileCols, shared.w[half ^ 1]);
    }
    CommitCopies();
    WaitForCopies<1>();
    __syncthreads();
    MultiplyTile<kTileTokens>(shared.x[half], shared.w[half], sums);
    __syncthreads();
  }
  const int64_t token = first_token + WarpIndex() / Tile::kRowWarps * Tile::kTokens + Lane() / 4;
  const int64_t row = first_row + WarpIndex() % Tile::kRowWarps * Tile::kRows + Lane() % 4 * 2;
  REMPART_UNROLL
  for (int i = 0; i < Tile::kTokens / 16; ++i) {
    REMPART_UNROLL
    for (int j = 0; j < Tile::kRows / 8; ++j) {
      StorePair(args, token + 16 * i, row + 8 * j, sums[i][j][0], sums[i][j][1]);
      StorePair(args, token + 16 * i + 8, row + 8 * j, sums[i][j][2], sums[i][j][3]);
    }
  }
}

template <class WeightDecoder, int kTileTokens>
void LaunchTiles(const DeviceMatmulArgs& args, DeviceStream stream) {
  const Grid grid = {static_cast<uint32_t>(CeilDivide(args.w.rows, kTileRows)),
                     static_cast<uint32_t>(CeilDivide(args.num_tokens, kTileTokens))};
  Launch(MatmulKernel<WeightDecoder, kTileTokens>, grid, kThreads, sizeof(Shared<kTileTokens>),
         stream, args);
}

}  // namespace

void Matmul(const DeviceMatmulArgs& args, DeviceStream stream) {
  if (args.num_tokens == 0) return;
  WithDecoder(args.w, [&](auto decoder) {
    using D = decltype(decoder);
    if (args.num_tokens <= 16) {
      LaunchTiles<D, 16>(args, stream);
    } else if (args.num_tokens <= 64) {
      LaunchTiles<D, 64>(args, stream);
    } else {
      LaunchTiles<D, 128>(args, stream);
    }
  });
}

}  // namespace rempart::kernels::cuda
