// SPDX-License-Identifier: Apache-2.0
// Attention over paged KV with a running maximum (online softmax), in chunks of 128 keys that begin
// at multiples of 128: every query adds its keys in the same order however its prompt was cut into
// steps. Up to eight queries that read the same KV head share each load. Keys lie one per lane, so
// scores need no sum across lanes. Bytes: K and V of the context once per tile of queries; bound:
// multiplications in prefill, memory in decode.
#pragma once

#include "kernels/blocks.h"
#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/math.inl.h"

namespace rempart::kernels {

template <class V, class T>
struct AttentionKernel {
  using F = typename V::F;
  static constexpr int kL = V::kLanes;
  static constexpr int64_t kChunk = 128;
  static constexpr int kMaxTile = kL == 16 ? 8 : 4;
  static constexpr int kMaxDim = 256;
  static constexpr int kKeyVectors = static_cast<int>(kKvBlockTokens) / kL;
  static constexpr float kLowest = -3.0e38f;

  static F LoadKv(const float* p) { return V::Load(p); }
  static F LoadKv(const uint16_t* p) { return V::LoadHalf(p); }
  static float Value(float x) { return x; }
  static float Value(uint16_t x) { return HalfToFloat(x); }

  // One query of a tile.
  struct Query {
    float* out;
    int64_t first, last;  // keys that it sees
    float largest, sum;
  };

  struct Tile {
    const AttentionArgs* args;
    int64_t kv_head;
    int64_t first, last;  // keys that any query sees
    Query queries[kMaxTile];
    alignas(64) float q[kMaxTile][kMaxDim];  // scaled
    alignas(64) float acc[kMaxTile][kMaxDim];
    alignas(64) float p[kMaxTile][kChunk];  // scores, then weights, of the current chunk
  };

  static const T* Block(const Tile& tile, int64_t block_index) {
    const KvView& kv = tile.args->kv;
    return reinterpret_cast<const T*>(static_cast<const uint8_t*>(kv.data) +
                                      tile.args->block_table[block_index] * kv.block_stride_bytes);
  }

  template <int kN>
  static void Scores(Tile* tile, const T* keys, int64_t slot) {
    const int64_t head_dim = tile->args->kv.head_dim;
    F acc[kN][kKeyVectors];
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kKeyVectors; ++v) acc[n][v] = V::Zero();
    }
    for (int64_t d = 0; d < head_dim; ++d) {
      F key[kKeyVectors];
      for (int v = 0; v < kKeyVectors; ++v) key[v] = LoadKv(keys + d * kKvBlockTokens + v * kL);
      for (int n = 0; n < kN; ++n) {
        const F q = V::Set1(tile->q[n][d]);
        for (int v = 0; v < kKeyVectors; ++v) acc[n][v] = V::Fma(q, key[v], acc[n][v]);
      }
    }
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kKeyVectors; ++v) V::Store(tile->p[n] + slot + v * kL, acc[n][v]);
    }
  }

  // Turns the scores of keys [base, base + count) of query n into weights relative to its running
  // maximum, and returns the factor for what it has summed before. count is a multiple of 16.
  static float Weigh(Tile* tile, int n, int64_t base, int64_t count) {
    Query& query = tile->queries[n];
    float* p = tile->p[n];
    const float cap = tile->args->softcap;
    if (cap > 0.0f) Elementwise<V>::Softcap(p, cap, 0, count);
    const int64_t low = query.first > base ? query.first - base : 0;
    const int64_t high = query.last + 1 - base < count ? query.last + 1 - base : count;
    for (int64_t i = 0; i < low && i < count; ++i) p[i] = kLowest;
    for (int64_t i = high > 0 ? high : 0; i < count; ++i) p[i] = kLowest;
    const float largest = Elementwise<V>::Largest(p, count);
    const float before = query.largest;
    if (largest > before) query.largest = largest;
    const F offset = V::Set1(query.largest);
    for (int64_t i = 0; i < count; i += kL) {
      V::Store(p + i, Math<V>::Exp(V::Sub(V::Load(p + i), offset)));
    }
    for (int64_t i = 0; i < low && i < count; ++i) p[i] = 0.0f;
    for (int64_t i = high > 0 ? high : 0; i < count; ++i) p[i] = 0.0f;
    F sums = V::Zero();
    for (int64_t i = 0; i < count; i += kL) sums = V::Add(sums, V::Load(p + i));
    float factor = 1.0f;
    if (query.largest > before) {
      float lanes[kL];
      V::Store(lanes, Math<V>::Exp(V::Set1(before - query.largest)));
      factor = before == kLowest ? 0.0f : lanes[0];
    }
    query.sum = query.sum * factor + V::Sum(sums);
    return factor;
  }

  // acc[n][d..] += sum of weights * values for keys [low, high) of the chunk, kVectors vectors
  // wide.
  template <int kN, int kVectors>
  static void AddValues(Tile* tile, const T* const* blocks, const float* factors, int64_t low,
                        int64_t high, int64_t d) {
    const int64_t head_dim = tile->args->kv.head_dim;
    F acc[kN][kVectors];
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kVectors; ++v) {
        acc[n][v] = V::Mul(V::Load(tile->acc[n] + d + v * kL), V::Set1(factors[n]));
      }
    }
    for (int64_t i = low; i < high; ++i) {
      const T* value = blocks[i / kKvBlockTokens] + i % kKvBlockTokens * head_dim + d;
      F in[kVectors];
      for (int v = 0; v < kVectors; ++v) in[v] = LoadKv(value + v * kL);
      for (int n = 0; n < kN; ++n) {
        const F weight = V::Set1(tile->p[n][i]);
        for (int v = 0; v < kVectors; ++v) acc[n][v] = V::Fma(weight, in[v], acc[n][v]);
      }
    }
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kVectors; ++v) V::Store(tile->acc[n] + d + v * kL, acc[n][v]);
    }
  }

  template <int kN>
  static void AllValues(Tile* tile, const T* const* blocks, const float* factors, int64_t low,
                        int64_t high) {
    // As many accumulators as registers hold.
    constexpr int kWide = kL == 16 && kN <= 4 ? 4 : 2;
    const int64_t head_dim = tile->args->kv.head_dim;
    int64_t d = 0;
    for (; d + kWide * kL <= head_dim; d += kWide * kL) {
      AddValues<kN, kWide>(tile, blocks, factors, low, high, d);
    }
    for (; d + kL <= head_dim; d += kL) AddValues<kN, 1>(tile, blocks, factors, low, high, d);
    for (; d < head_dim; ++d) {
      for (int n = 0; n < kN; ++n) {
        float sum = tile->acc[n][d] * factors[n];
        for (int64_t i = low; i < high; ++i) {
          const T* value = blocks[i / kKvBlockTokens] + i % kKvBlockTokens * head_dim + d;
          sum += tile->p[n][i] * Value(*value);
        }
        tile->acc[n][d] = sum;
      }
    }
  }

  template <int kN>
  static void RunTile(Tile* tile) {
    const KvView& kv = tile->args->kv;
    const int64_t head_elements = kv.head_dim * kKvBlockTokens;
    for (int64_t base = tile->first / kChunk * kChunk; base <= tile->last; base += kChunk) {
      const int64_t end = tile->last + 1 < base + kChunk ? tile->last + 1 : base + kChunk;
      const int64_t begin = tile->first > base ? tile->first : base;
      const int64_t first_block = (begin - base) / kKvBlockTokens;
      const int64_t count = (end - base + kKvBlockTokens - 1) / kKvBlockTokens * kKvBlockTokens;
      const T* values[kChunk / kKvBlockTokens] = {};
      for (int n = 0; n < kN; ++n) {
        for (int64_t i = 0; i < first_block * kKvBlockTokens; ++i) tile->p[n][i] = kLowest;
      }
      for (int64_t b = first_block; b * kKvBlockTokens < count; ++b) {
        const T* block = Block(*tile, base / kKvBlockTokens + b);
        Scores<kN>(tile, block + tile->kv_head * head_elements, b * kKvBlockTokens);
        values[b] = block + (kv.kv_heads + tile->kv_head) * head_elements;
      }
      float factors[kN];
      for (int n = 0; n < kN; ++n) factors[n] = Weigh(tile, n, base, count);
      AllValues<kN>(tile, values, factors, begin - base, end - base);
    }
    for (int n = 0; n < kN; ++n) {
      const float inverse = 1.0f / tile->queries[n].sum;
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        tile->queries[n].out[d] = tile->acc[n][d] * inverse;
      }
    }
  }

  template <int kN>
  static void RunTileOf(Tile* tile, int n) {
    if (n == kN) return RunTile<kN>(tile);
    if constexpr (kN > 1) RunTileOf<kN - 1>(tile, n);
  }

  static void AddQuery(Tile* tile, int n, int64_t head, int64_t token) {
    const AttentionArgs& args = *tile->args;
    const int64_t head_dim = args.kv.head_dim;
    const float* q = args.q + token * args.q_stride + head * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) {
      tile->q[n][d] = q[d] * args.scale;
      tile->acc[n][d] = 0.0f;
    }
    Query& query = tile->queries[n];
    query.out = args.out + token * args.out_stride + head * head_dim;
    query.last = args.first_position + token;
    query.first = args.window > 0 && query.last >= args.window ? query.last - args.window + 1 : 0;
    query.largest = kLowest;
    query.sum = 0.0f;
    if (n == 0 || query.first < tile->first) tile->first = query.first;
    if (n == 0 || query.last > tile->last) tile->last = query.last;
  }

  static void Run(const AttentionArgs& args, int64_t begin, int64_t end) {
    Tile tile;
    tile.args = &args;
    const int64_t group = args.num_heads / args.kv.kv_heads;
    for (int64_t item = begin; item < end;) {
      tile.kv_head = item / args.num_tokens / group;
      int n = 0;
      // Neighbours that share the KV head: tokens of one head, or heads of one token.
      while (n < kMaxTile && item < end && item / args.num_tokens / group == tile.kv_head) {
        if (n > 0 && args.num_tokens >= kMaxTile && item % args.num_tokens == 0) break;
        AddQuery(&tile, n++, item / args.num_tokens, item % args.num_tokens);
        ++item;
      }
      RunTileOf<kMaxTile>(&tile, n);
    }
  }
};

template <class V>
void Attention(const AttentionArgs& args, int64_t begin, int64_t end) {
  if (args.kv.type == DType::kF32) {
    AttentionKernel<V, float>::Run(args, begin, end);
  } else {
    AttentionKernel<V, uint16_t>::Run(args, begin, end);
  }
}

}  // namespace rempart::kernels
