// SPDX-License-Identifier: Apache-2.0
// AddNorm: one block a token. Reads branch and residual once, keeps the new residual in registers,
// writes residual and output once: 4 + 4 + 2 + 2 bytes an element, bound by memory; at one token by
// latency, which is why the block is wide.
//
// The formula is in kernels/device_ops.h; sums of squares are F32, in an order that depends on cols
// alone.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/primitives.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kPerThread = 8;  // elements of one access
constexpr int kMaxRounds = 8;  // covers cols up to 32768

struct Shared {
  float scratch[32];
};

template <int kRounds>
REMPART_KERNEL(kThreads)
AddNormKernel(AddNormArgs args) {
  WaitForPrevious();
  LetNextStart();
  Shared& shared = *DynamicShared<Shared>();
  const int64_t out_row = blockIdx.x;
  const int64_t row = args.rows != nullptr ? args.rows[out_row] : out_row;
  float values[kRounds][kPerThread];
  AddNormRow<kRounds>(args, row, out_row, values, shared.scratch,
                      [&](int64_t at, float(&branch)[kPerThread]) {
                        LoadBf16x8(args.branch + row * args.cols + at, branch);
                      });
}

}  // namespace

void AddNorm(const AddNormArgs& args, DeviceStream stream) {
  if (args.num_rows == 0) return;
  const Grid grid = {static_cast<uint32_t>(args.num_rows)};
  const int64_t rounds = CeilDivide(args.cols, kThreads * kPerThread);
  if (rounds <= 1) {
    Launch(AddNormKernel<1>, grid, kThreads, sizeof(Shared), stream, args);
  } else if (rounds <= 2) {
    Launch(AddNormKernel<2>, grid, kThreads, sizeof(Shared), stream, args);
  } else {
    Launch(AddNormKernel<kMaxRounds>, grid, kThreads, sizeof(Shared), stream, args);
  }
}

}  // namespace rempart::kernels::cuda
