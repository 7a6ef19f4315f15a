// SPDX-License-Identifier: Apache-2.0
// AttentionPrefill: a block takes 64 queries of one slice and one head, 16 to each warp, and walks
// over the keys that any of them sees, 64 at a time, in the manner of FlashAttention-2 (Dao 2023).
// Keys of the next tile are on their way while this one is computed. Bound by the tensor cores for
// long contexts.
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeys = 64;
static_assert(kPrefillTile == kWarps * 16);

template <int kHeadDim>
struct Shared {
  uint16_t q[kPrefillTile * kSharedStride<kHeadDim>];
  uint16_t k[2][kKeys * kSharedStride<kHeadDim>];
  uint16_t v[2][kKeys * kSharedStride<kHeadDim>];
};
// Head dimensions of 256 have no room for two tiles.
template <>
struct Shared<256> {
  uint16_t q[kPrefillTile * kSharedStride<256>];
  uint16_t k[1][kKeys * kSharedStride<256>];
  uint16_t v[1][kKeys * kSharedStride<256>];
};

struct Tile {
  int64_t slice;
  int64_t first_row;       // token row of the first query
  int64_t first_position;  // of the first query
  int64_t queries;
  TokenRange keys;
};

REMPART_DEVICE Tile FindTile(const DeviceAttentionArgs& args) {
  Tile tile;
  tile.slice = args.tile_slices[blockIdx.x];
  const int64_t skipped = args.tile_indices[blockIdx.x] * kPrefillTile;
  const int64_t begin = args.batch.query_starts[tile.slice];
  const int64_t count = args.batch.query_starts[tile.slice + 1] - begin;
  tile.first_row = begin + skipped;
  tile.queries = Min<int64_t>(kPrefillTile, count - skipped);
  tile.first_position = args.batch.contexts[tile.slice] - count + skipped;
  tile.keys =
      TileTokens(tile.first_position, tile.first_position + tile.queries - 1, args.window, kKeys);
  return tile;
}

template <int kHeadDim>
REMPART_DEVICE void StageQueries(const DeviceAttentionArgs& args, const Tile& tile, int64_t head,
                                 uint16_t* to) {
  constexpr int kUnits = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kPrefillTile * kUnits; i += kThreads) {
    const int row = i / kUnits;
    const int at = i % kUnits * 8;
    const bool valid = row < tile.queries && at < args.kv.head_dim;
    const uint16_t* from =
        args.q +
        (valid ? (tile.first_row + row) * args.q_stride + head * args.kv.head_dim + at : 0);
    CopyAsync16(to + row * kSharedStride<kHeadDim> + at, from, valid);
  }
}

template <int kHeadDim, bool kIsFp8>
REMPART_DEVICE void StageKeys(const DeviceAttentionArgs& args, const Tile& tile, int64_t kv_head,
                              int64_t first, uint16_t* keys, uint16_t* values) {
  constexpr int kUnits = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * kUnits; i += kThreads) {
    const int token = i / kUnits;
    const int at = i % kUnits * 8;
    const int64_t position = first + token;
    const bool valid = position < tile.keys.end && at < args.kv.head_dim;
    const uint8_t* block =
        valid ? KvBlockStart(args.kv, KvBlockOf(args.batch, tile.slice, position)) : nullptr;
    const int to = token * kSharedStride<kHeadDim> + at;
    LoadCacheRow<kIsFp8>(args.kv, block, KRowInBlock(args.kv, kv_head, position), at, valid,
                         keys + to);
    LoadCacheRow<kIsFp8>(args.kv, block, VRowInBlock(args.kv, kv_head, position), at, valid,
                         values + to);
  }
}

template <int kHeadDim>
REMPART_DEVICE void StoreRows(const DeviceAttentionArgs& args, const Tile& tile, int64_t head,
                              AttentionState<kHeadDim>& state) {
  FinishSums(state);
  REMPART_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = WarpIndex() * 16 + Lane() / 4 + 8 * half;
    if (row >= tile.queries) continue;
    const float inverse = args.kv.v_scale / state.sum[half];
    uint16_t* out = args.out + (tile.first_row + row) * args.out_stride + head * args.kv.head_dim;
    REMPART_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const int at = 8 * i + Lane() % 4 * 2;
      if (at >= args.kv.head_dim) break;
      *Wide<uint32_t>(out + at) =
          PackBf16(state.out[i][2 * half] * inverse, state.out[i][2 * half + 1] * inverse);
    }
  }
}

template <int kHeadDim, bool kIsFp8>
REMPART_KERNEL(kThreads)
PrefillKernel(DeviceAttentionArgs args) {
  constexpr int kBuffers = kHeadDim > 128 ? 1 : 2;
  WaitForPrevious();
  LetNextStart();
  auto& shared = *DynamicShared<Shared<kHeadDim>>();
  const Tile tile = FindTile(args);
  const int64_t head = blockIdx.y;
  const int64_t kv_head = head / (args.num_heads / args.kv.kv_heads);
  StageQueries<kHeadDim>(args, tile, head, shared.q);
  StageKeys<kHeadDim, kIsFp8>(args, tile, kv_head, tile.keys.begin, shared.k[0], shared.v[0]);
  CommitCopies();
  AttentionState<kHeadDim> state;
  Reset(state);
  uint32_t q[kHeadDim / 16][4];
  const float scale = args.scale * args.kv.k_scale;
  const int64_t row_position = tile.first_position + WarpIndex() * 16 + Lane() / 4;
  int buffer = 0;
  for (int64_t first = tile.keys.begin; first < tile.keys.end; first += kKeys) {
    const bool has_next = first + kKeys < tile.keys.end;
    if (kBuffers == 2 && has_next) {
      StageKeys<kHeadDim, kIsFp8>(args, tile, kv_head, first + kKeys,
                                  shared.k[(buffer + 1) % kBuffers],
                                  shared.v[(buffer + 1) % kBuffers]);
    }
    CommitCopies();
    WaitForCopies<1>();
    __syncthreads();
    if (first == tile.keys.begin) {
      LoadQueries<kHeadDim>(shared.q + WarpIndex() * 16 * kSharedStride<kHeadDim>, q);
    }
    AttendTile<kHeadDim, kKeys>(
        q, shared.k[buffer], shared.v[buffer], scale, args.softcap,
        [&](int half, int token) {
          const TokenRange seen = VisibleTokens(row_position + 8 * half, args.window);
          return first + token >= seen.begin && first + token < Min(seen.end, tile.keys.end);
        },
        state);
    __syncthreads();
    if (kBuffers == 1 && has_next) {
      StageKeys<kHeadDim, kIsFp8>(args, tile, kv_head, first + kKeys, shared.k[0], shared.v[0]);
      CommitCopies();
    }
    buffer = (buffer + 1) % kBuffers;
  }
  StoreRows<kHeadDim>(args, tile, head, state);
}

template <int kHeadDim>
void LaunchTiles(const DeviceAttentionArgs& args, DeviceStream stream) {
  const Grid grid = {static_cast<uint32_t>(args.num_tiles), static_cast<uint32_t>(args.num_heads)};
  Launch(args.kv.is_fp8 ? PrefillKernel<kHeadDim, true> : PrefillKernel<kHeadDim, false>, grid,
         kThreads, sizeof(Shared<kHeadDim>), stream, args);
}

}  // namespace

void AttentionPrefill(const DeviceAttentionArgs& args, DeviceStream stream) {
  if (args.num_tiles == 0) return;
  if (args.kv.head_dim <= 64) {
    LaunchTiles<64>(args, stream);
  } else if (args.kv.head_dim <= 128) {
    LaunchTiles<128>(args, stream);
  } else {
    LaunchTiles<256>(args, stream);
  }
}

}  // namespace rempart::kernels::cuda
