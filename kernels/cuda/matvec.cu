// SPDX-License-Identifier: Apache-2.0
// Matvec: products of a few tokens, bound by reading the weights once. A warp computes kRows rows
// for all tokens; a lane takes eight elements of each row at a time, decoded in registers, and
// reads the same eight activations, which stay in L1. Per step and lane 16 bytes of BF16 weights
// (8 FP8, about 4.5 Q4_K) are in flight for each row.
//
// Weights do not depend on the kernel before, so their first lines are fetched into L2 while that
// one still runs (programmatic dependent launch).
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/quant_blocks.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 2;

template <class WeightDecoder>
REMPART_DEVICE void PrefetchRows(const DeviceMatrix& w, int64_t first_row) {
  const int64_t row_bytes = WeightDecoder::RowBytesOf(w.cols);
  for (int r = 0; r < kRows; ++r) {
    if (first_row + r >= w.rows) break;
    const auto* row = static_cast<const uint8_t*>(w.data) + (first_row + r) * row_bytes;
    const int64_t at = static_cast<int64_t>(Lane()) * 128;
    if (at < row_bytes) PrefetchL2(row + at);
  }
}

template <class WeightDecoder, int kTokens>
REMPART_KERNEL(kThreads)
MatvecKernel(DeviceMatmulArgs args) {
  const int64_t first_row = (static_cast<int64_t>(blockIdx.x) * kWarps + WarpIndex()) * kRows;
  PrefetchRows<WeightDecoder>(args.w, first_row);
  WaitForPrevious();
  LetNextStart();
  if (first_row >= args.w.rows) return;
  float sums[kRows][kTokens] = {};
#if defined(__CUDACC__)
#pragma unroll 4
#endif
  for (int64_t at = static_cast<int64_t>(Lane()) * 8; at < args.w.cols; at += kWarp * 8) {
    float w[kRows][8];
    REMPART_UNROLL
    for (int r = 0; r < kRows; ++r) {
      // The last row stands in for one that does not exist; its sum is not stored.
      const int64_t row = Min(first_row + r, args.w.rows - 1);
      WeightDecoder::Decode(args.w, row, at, w[r]);
    }
    REMPART_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      if (t >= args.num_tokens) break;
      float x[8];
      LoadBf16x8(args.x + t * args.x_stride + at, x);
      REMPART_UNROLL
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < 8; ++i) sums[r][t] += w[r][i] * x[i];
      }
    }
  }
  REMPART_UNROLL
  for (int r = 0; r < kRows; ++r) {
    REMPART_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const float sum = WarpSum(sums[r][t]);
      if (Lane() != 0 || t >= args.num_tokens || first_row + r >= args.w.rows) continue;
      const int64_t at = t * args.y_stride + first_row + r;
      if (args.y_is_f32) {
        static_cast<float*>(args.y)[at] = sum;
      } else {
        static_cast<uint16_t*>(args.y)[at] = ToBf16(sum).bits;
      }
    }
  }
}

}  // namespace

void Matvec(const DeviceMatmulArgs& args, DeviceStream stream) {
  if (args.num_tokens == 0) return;
  const Grid grid = {static_cast<uint32_t>(CeilDivide(args.w.rows, kWarps * kRows))};
  WithDecoder(args.w, [&](auto decoder) {
    using D = decltype(decoder);
    if (args.num_tokens == 1) {
      Launch(MatvecKernel<D, 1>, grid, kThreads, 0, stream, args);
    } else if (args.num_tokens <= 4) {
      Launch(MatvecKernel<D, 4>, grid, kThreads, 0, stream, args);
    } else {
      Launch(MatvecKernel<D, kMatvecTokens>, grid, kThreads, 0, stream, args);
    }
  });
}

}  // namespace rempart::kernels::cuda
