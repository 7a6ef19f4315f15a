// SPDX-License-Identifier: Apache-2.0
// AttentionDecode: one query token a slice. The context is cut into splits of a fixed length, so
// that the result does not depend on the batch; a block takes one split of one KV head, and the
// query heads that share it are the 16 rows of the tensor cores' tile. Each of the four warps walks
// over every fourth KV block of 16 tokens with copies of its own in flight; the warps' results meet
// in shared memory, the splits' in a second kernel. Bound by reading the cache once.
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeys = 16;  // a KV block
constexpr int kRows = 16;

template <int kHeadDim>
struct Stage {
  uint16_t k[kKeys * kSharedStride<kHeadDim>];
  uint16_t v[kKeys * kSharedStride<kHeadDim>];
};
// Head dimensions of 256 have no room for two stages a warp.
template <int kHeadDim>
inline constexpr int kStages = kHeadDim > 128 ? 1 : 2;

template <int kHeadDim>
struct Shared {
  uint16_t q[kRows * kSharedStride<kHeadDim>];
  union {
    Stage<kHeadDim> stages[kWarps][kStages<kHeadDim>];
    struct {
      float out[kWarps][kRows][kHeadDim];
      float max[kWarps][kRows];
      float sum[kWarps][kRows];
    } merge;
  };
};

struct Work {
  int64_t slice;
  int64_t kv_head;
  int64_t first_head;  // of these rows
  int64_t rows;        // heads
  int64_t position;
  TokenRange tokens;
};

REMPART_DEVICE Work FindWork(const DeviceAttentionArgs& args) {
  Work work;
  const int64_t group = args.num_heads / args.kv.kv_heads;
  const int64_t parts = CeilDivide(group, kRows);
  work.slice = blockIdx.z;
  work.kv_head = blockIdx.y / parts;
  work.first_head = work.kv_head * group + blockIdx.y % parts * kRows;
  work.rows = Min<int64_t>(kRows, (work.kv_head + 1) * group - work.first_head);
  work.position = args.batch.contexts[work.slice] - 1;
  work.tokens = SplitTokens(blockIdx.x, work.position, args.window, args.split_tokens);
  return work;
}

template <int kHeadDim, bool kIsFp8>
REMPART_DEVICE void StageBlock(const DeviceAttentionArgs& args, const Work& work, int64_t first,
                               Stage<kHeadDim>& stage) {
  constexpr int kUnits = kHeadDim / 8;
  const uint8_t* block = KvBlockStart(args.kv, KvBlockOf(args.batch, work.slice, first));
  for (int i = Lane(); i < kKeys * kUnits; i += kWarp) {
    const int token = i / kUnits;
    const int at = i % kUnits * 8;
    const bool valid = first + token < work.tokens.end && at < args.kv.head_dim;
    const int to = token * kSharedStride<kHeadDim> + at;
    LoadCacheRow<kIsFp8>(args.kv, block, KRowInBlock(args.kv, work.kv_head, first + token), at,
                         valid, stage.k + to);
    LoadCacheRow<kIsFp8>(args.kv, block, VRowInBlock(args.kv, work.kv_head, first + token), at,
                         valid, stage.v + to);
  }
}

template <int kHeadDim>
REMPART_DEVICE void StageQueries(const DeviceAttentionArgs& args, const Work& work, uint16_t* to) {
  constexpr int kUnits = kHeadDim / 8;
  const int64_t row = args.batch.query_starts[work.slice];
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kUnits; i += kThreads) {
    const int head = i / kUnits;
    const int at = i % kUnits * 8;
    const bool valid = head < work.rows && at < args.kv.head_dim;
    const int64_t from =
        valid ? row * args.q_stride + (work.first_head + head) * args.kv.head_dim + at : 0;
    CopyAsync16(to + head * kSharedStride<kHeadDim> + at, args.q + from, valid);
  }
}

// One result from the four warps': threads share out rows and dimensions.
template <int kHeadDim>
REMPART_DEVICE void MergeWarps(const DeviceAttentionArgs& args, const Work& work,
                               const Shared<kHeadDim>& shared) {
  const int64_t dim = args.kv.head_dim;
  for (int64_t i = threadIdx.x; i < work.rows * dim; i += kThreads) {
    const int64_t row = i / dim;
    const int64_t d = i % dim;
    float max = -INFINITY;
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, shared.merge.max[w][row]);
    float sum = 0.0f;
    float value = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      // A warp without a token has the maximum -inf, and counts for nothing.
      const float factor = FastExp(shared.merge.max[w][row] - max);
      sum += shared.merge.sum[w][row] * factor;
      value += shared.merge.out[w][row][d] * factor;
    }
    float* partial = args.partial + PartialOffset(work.slice, work.first_head + row, blockIdx.x,
                                                  args.num_heads, dim, args.max_splits);
    partial[2 + d] = value;
    if (d == 0) {
      partial[0] = max;
      partial[1] = sum;
    }
  }
}

template <int kHeadDim, bool kIsFp8>
REMPART_KERNEL(kThreads)
DecodeKernel(DeviceAttentionArgs args) {
  WaitForPrevious();
  LetNextStart();
  auto& shared = *DynamicShared<Shared<kHeadDim>>();
  const Work work = FindWork(args);
  if (work.tokens.begin >= work.tokens.end) return;
  StageQueries<kHeadDim>(args, work, shared.q);
  // A warp's first block; copies of the queries are in the same group.
  const int64_t start = work.tokens.begin / kKeys * kKeys + WarpIndex() * kKeys;
  constexpr int64_t kStep = kWarps * kKeys;
  constexpr int kBuffers = kStages<kHeadDim>;
  Stage<kHeadDim>(&stages)[kBuffers] = shared.stages[WarpIndex()];
  if (start < work.tokens.end) StageBlock<kHeadDim, kIsFp8>(args, work, start, stages[0]);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  uint32_t q[kHeadDim / 16][4];
  LoadQueries<kHeadDim>(shared.q, q);
  AttentionState<kHeadDim> state;
  Reset(state);
  int buffer = 0;
  for (int64_t first = start; first < work.tokens.end; first += kStep) {
    const bool has_next = first + kStep < work.tokens.end;
    const int next = (buffer + 1) % kBuffers;
    if (kBuffers == 2 && has_next) {
      StageBlock<kHeadDim, kIsFp8>(args, work, first + kStep, stages[next]);
    }
    CommitCopies();
    WaitForCopies<1>();
    WarpBarrier();
    AttendTile<kHeadDim, kKeys>(
        q, stages[buffer].k, stages[buffer].v, args.scale * args.kv.k_scale, args.softcap,
        [&](int, int token) {
          return first + token >= work.tokens.begin && first + token < work.tokens.end;
        },
        state);
    WarpBarrier();
    if (kBuffers == 1 && has_next) {
      StageBlock<kHeadDim, kIsFp8>(args, work, first + kStep, stages[0]);
      CommitCopies();
    }
    buffer = next;
  }
  FinishSums(state);
  __syncthreads();  // the stages become the merge's memory
  for (int half = 0; half < 2; ++half) {
    const int row = Lane() / 4 + 8 * half;
    REMPART_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const int at = 8 * i + Lane() % 4 * 2;
      shared.merge.out[WarpIndex()][row][at] = state.out[i][2 * half];
      shared.merge.out[WarpIndex()][row][at + 1] = state.out[i][2 * half + 1];
    }
    if (Lane() % 4 > 0) continue;  // the four lanes of a row have the same
    shared.merge.max[WarpIndex()][row] = state.max[half];
    shared.merge.sum[WarpIndex()][row] = state.sum[half];
  }
  __syncthreads();
  MergeWarps<kHeadDim>(args, work, shared);
}

REMPART_KERNEL(kThreads) CombineKernel(DeviceAttentionArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t head = blockIdx.x;
  const int64_t slice = blockIdx.y;
  const int64_t dim = args.kv.head_dim;
  const int64_t position = args.batch.contexts[slice] - 1;
  if (position < 0) return;
  const TokenRange splits = VisibleSplits(position, args.window, args.split_tokens);
  const float* partial =
      args.partial + PartialOffset(slice, head, 0, args.num_heads, dim, args.max_splits);
  float max = -INFINITY;
  for (int64_t s = splits.begin; s < splits.end; ++s) {
    max = fmaxf(max, partial[s * PartialFloats(dim)]);
  }
  float sum = 0.0f;
  for (int64_t s = splits.begin; s < splits.end; ++s) {
    const float* part = partial + s * PartialFloats(dim);
    sum += part[1] * FastExp(part[0] - max);
  }
  const int64_t row = args.batch.query_starts[slice];
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) {
    float value = 0.0f;
    for (int64_t s = splits.begin; s < splits.end; ++s) {
      const float* part = partial + s * PartialFloats(dim);
      value += part[2 + d] * FastExp(part[0] - max);
    }
    args.out[row * args.out_stride + head * dim + d] = ToBf16(value / sum * args.kv.v_scale).bits;
  }
}

template <int kHeadDim>
void LaunchSplits(const DeviceAttentionArgs& args, DeviceStream stream) {
  const int64_t group = args.num_heads / args.kv.kv_heads;
  const Grid grid = {static_cast<uint32_t>(args.max_splits),
                     static_cast<uint32_t>(args.kv.kv_heads * CeilDivide(group, kRows)),
                     static_cast<uint32_t>(args.batch.num_slices)};
  Launch(args.kv.is_fp8 ? DecodeKernel<kHeadDim, true> : DecodeKernel<kHeadDim, false>, grid,
         kThreads, sizeof(Shared<kHeadDim>), stream, args);
}

}  // namespace

void AttentionDecode(const DeviceAttentionArgs& args, DeviceStream stream) {
  if (args.batch.num_slices == 0) return;
  if (args.kv.head_dim <= 64) {
    LaunchSplits<64>(args, stream);
  } else if (args.kv.head_dim <= 128) {
    LaunchSplits<128>(args, stream);
  } else {
    LaunchSplits<256>(args, stream);
  }
  Launch(CombineKernel,
         {static_cast<uint32_t>(args.num_heads), static_cast<uint32_t>(args.batch.num_slices)},
         kThreads, 0, stream, args);
}

}  // namespace rempart::kernels::cuda
