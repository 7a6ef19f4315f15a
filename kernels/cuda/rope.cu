// SPDX-License-Identifier: Apache-2.0
// RopeStore: one warp a head of a token. Query and key heads are normed (where the family does) and
// rotated in registers; keys and values go straight to the paged cache. Bytes moved: the qkv row
// once, q and the cache row once. The angle is position * inverse_frequency rounded to F32, as in
// kernels/reference.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/primitives.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kPairs = 4;  // pairs of a lane: head_dim up to 256

template <class Element>
REMPART_DEVICE void StorePair(uint8_t* block, int64_t row, const RotaryPair& pair, float first,
                              float second, float inverse_scale) {
  auto* elements = Wide<Element>(block) + row;
  Store(elements + pair.first, first * inverse_scale);
  Store(elements + pair.second, second * inverse_scale);
}

// Norm and rotation of the pairs that this lane holds.
REMPART_DEVICE void NormAndRotate(const RopeStoreArgs& args, const float* norm, int64_t position,
                                  const RotaryPair (&pairs)[kPairs], float (&first)[kPairs],
                                  float (&second)[kPairs]) {
  const int64_t dim = args.kv.head_dim;
  if (norm != nullptr) {
    float sum = 0.0f;
    for (int i = 0; i < kPairs; ++i) sum += first[i] * first[i] + second[i] * second[i];
    const float inverse = InverseRoot(WarpSum(sum) / static_cast<float>(dim) + args.eps);
    for (int i = 0; i < kPairs; ++i) {
      if (Lane() + 32 * i >= dim / 2) break;
      first[i] *= inverse * norm[pairs[i].first];
      second[i] *= inverse * norm[pairs[i].second];
    }
  }
  for (int i = 0; i < kPairs; ++i) {
    const int64_t index = Lane() + 32 * i;
    if (index >= args.rotary_dim / 2) break;
    const float angle = static_cast<float>(position) * args.inverse_frequency[index];
    const float c = cosf(angle) * args.angle_scale;
    const float s = sinf(angle) * args.angle_scale;
    const float rotated = first[i] * c - second[i] * s;
    second[i] = first[i] * s + second[i] * c;
    first[i] = rotated;
  }
}

REMPART_KERNEL(kThreads) RopeStoreKernel(RopeStoreArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t token = blockIdx.x;
  const int64_t head = static_cast<int64_t>(blockIdx.y) * kWarps + WarpIndex();
  const int64_t kv_heads = args.kv.kv_heads;
  const int64_t heads = args.num_heads + 2 * kv_heads;
  const int64_t position = args.batch.positions[token];
  if (head >= heads || position < 0) return;
  const int64_t dim = args.kv.head_dim;
  uint16_t* row = args.qkv + (token * heads + head) * dim;
  const bool is_interleaved = args.layout == RopeLayout::kInterleaved;
  RotaryPair pairs[kPairs];
  float first[kPairs] = {}, second[kPairs] = {};
  for (int i = 0; i < kPairs; ++i) {
    const int64_t index = Lane() + 32 * i;
    if (index >= dim / 2) break;
    pairs[i] = RotaryPairOf(index, args.rotary_dim, is_interleaved);
    first[i] = ToFloat(Bf16{row[pairs[i].first]});
    second[i] = ToFloat(Bf16{row[pairs[i].second]});
    if (args.bias != nullptr) {
      first[i] += args.bias[head * dim + pairs[i].first];
      second[i] += args.bias[head * dim + pairs[i].second];
    }
  }
  const bool is_query = head < args.num_heads;
  const bool is_key = !is_query && head < args.num_heads + kv_heads;
  if (is_query || is_key) {
    NormAndRotate(args, is_query ? args.query_norm : args.key_norm, position, pairs, first, second);
  }
  const int64_t kv_head = is_key ? head - args.num_heads : head - args.num_heads - kv_heads;
  uint8_t* block = nullptr;
  int64_t cache_row = 0;
  if (!is_query) {
    block =
        KvBlockStart(args.kv, KvBlockOf(args.batch, args.batch.slice_of_token[token], position));
    cache_row =
        is_key ? KRowInBlock(args.kv, kv_head, position) : VRowInBlock(args.kv, kv_head, position);
  }
  const float inverse_scale = 1.0f / (is_key ? args.kv.k_scale : args.kv.v_scale);
  for (int i = 0; i < kPairs; ++i) {
    if (Lane() + 32 * i >= dim / 2) break;
    if (is_query) {
      row[pairs[i].first] = ToBf16(first[i]).bits;
      row[pairs[i].second] = ToBf16(second[i]).bits;
    } else if (args.kv.is_fp8) {
      StorePair<Fp8>(block, cache_row, pairs[i], first[i], second[i], inverse_scale);
    } else {
      StorePair<Bf16>(block, cache_row, pairs[i], first[i], second[i], 1.0f);
    }
  }
}

}  // namespace

void RopeStore(const RopeStoreArgs& args, DeviceStream stream) {
  const int64_t heads = args.num_heads + 2 * args.kv.kv_heads;
  const auto rows = static_cast<uint32_t>(CeilDivide(heads, kWarps));
  if (args.batch.num_tokens == 0) return;
  // Tokens along x, the one side of a grid that may have more than 65535 blocks.
  Launch(RopeStoreKernel, {static_cast<uint32_t>(args.batch.num_tokens), rows}, kThreads, 0, stream,
         args);
}

}  // namespace rempart::kernels::cuda
