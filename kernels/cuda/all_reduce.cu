// SPDX-License-Identifier: Apache-2.0
// AllReduceNorm: every rank reads the inputs of all ranks over NVLink and sums them itself, in rank
// order, so that all ranks hold the same bits; then norm and residual in the same registers. One
// latency instead of NCCL's several, for messages of up to a few hundred KB.
//
// Block b of each rank tells block b of every peer that its round has begun, and waits for the same
// from them. A rank enters round n + 1 only when all its peers have entered it, that is, have ended
// round n; so the inputs of round n may be overwritten in round n + 2: two buffers suffice.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMaxRounds = 8;  // of 4096 columns

struct Shared {
  float scratch[32];
};

// flags of a rank: [blocks, kMaxPeers] words that peers write, then [blocks] round counters.
REMPART_DEVICE uint32_t* FlagOf(const AllReduceNormArgs& args, int owner, int from) {
  return args.flags[owner] + static_cast<int64_t>(blockIdx.x) * kMaxPeers + from;
}

REMPART_DEVICE void MeetPeers(const AllReduceNormArgs& args) {
  uint32_t* counter = args.flags[args.rank] + kAllReduceBlocks * kMaxPeers + blockIdx.x;
  const uint32_t round = *counter + 1;
  __syncthreads();
  if (threadIdx.x == 0) *counter = round;
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < args.ranks) {
    StoreRelease(FlagOf(args, peer, args.rank), round);
    const uint64_t begin = NowNs();
    // Rounds wrap around: a peer may be one ahead.
    while (static_cast<int32_t>(LoadAcquire(FlagOf(args, args.rank, peer)) - round) < 0) {
      if (NowNs() - begin > args.timeout_ns) {
        StoreRelease(args.error, 1);
        break;
      }
    }
  }
  __syncthreads();
}

template <int kRounds>
REMPART_KERNEL AllReduceNormKernel(AllReduceNormArgs args) {
  WaitForPrevious();
  LetNextStart();
  Shared& shared = *DynamicShared<Shared>();
  MeetPeers(args);
  for (int64_t row = blockIdx.x; row < args.norm.num_rows; row += gridDim.x) {
    float values[kRounds][8];
    AddNormRow<kRounds>(args.norm, row, row, values, shared.scratch,
                        [&](int64_t at, float(&branch)[8]) {
                          for (int i = 0; i < 8; ++i) branch[i] = 0.0f;
                          for (int rank = 0; rank < args.ranks; ++rank) {
                            float part[8];
                            LoadBf16x8(args.inputs[rank] + row * args.norm.cols + at, part);
                            for (int i = 0; i < 8; ++i) branch[i] += part[i];
                          }
                        });
  }
}

}  // namespace

void AllReduceNorm(const AllReduceNormArgs& args, DeviceStream stream) {
  if (args.norm.num_rows == 0) return;
  AllReduceNormArgs own = args;
  own.norm.branch = args.inputs[args.rank];  // says that there is one; its values are not read
  const Grid grid = {static_cast<uint32_t>(Min<int64_t>(args.norm.num_rows, kAllReduceBlocks))};
  const int64_t rounds = CeilDivide(args.norm.cols, kThreads * 8);
  if (rounds <= 1) {
    Launch(AllReduceNormKernel<1>, grid, kThreads, sizeof(Shared), stream, own);
  } else if (rounds <= 2) {
    Launch(AllReduceNormKernel<2>, grid, kThreads, sizeof(Shared), stream, own);
  } else {
    Launch(AllReduceNormKernel<kMaxRounds>, grid, kThreads, sizeof(Shared), stream, own);
  }
}

}  // namespace rempart::kernels::cuda
