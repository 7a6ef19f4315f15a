// SPDX-License-Identifier: Apache-2.0
// A tile of up to eight queries against 128 keys of one KV head: scores, online softmax, weighted
// sum of values. Every query goes through the same operations in the same order whatever else is
// in its tile. Keys lie one per lane, so scores need no sum across lanes.
#pragma once

#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/kv_formats.inl.h"
#include "kernels/cpu/math.inl.h"

namespace rempart::kernels {

inline constexpr int64_t kAttentionChunk = 128;
inline constexpr int64_t kAttentionMaxDim = 256;

template <class V>
struct AttentionTile {
  static constexpr int kMax = V::kLanes == 16 ? 8 : 4;
  static constexpr float kLowest = -3.0e38f;

  struct Query {
    float* out;           // null: fills the tile up
    int64_t first, last;  // keys that it sees
    float largest, sum;
  };

  int count;
  int64_t first, last;  // keys that any query sees
  Query queries[kMax];
  alignas(64) float q[kMax][kAttentionMaxDim];  // scaled
  alignas(64) float acc[kMax][kAttentionMaxDim];
  alignas(64) float p[kMax][kAttentionChunk];  // scores, then weights, of the current chunk

  void Clear() { count = 0; }

  void Add(const AttentionArgs& args, int64_t head, int64_t token) {
    const int64_t head_dim = args.kv.head_dim;
    const float* from = args.q + token * args.q_stride + head * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) {
      q[count][d] = from[d] * args.scale;
      acc[count][d] = 0.0f;
    }
    Query& query = queries[count];
    query.out = args.out + token * args.out_stride + head * head_dim;
    query.last = args.first_position + token;
    query.first = args.window > 0 && query.last >= args.window ? query.last - args.window + 1 : 0;
    query.largest = kLowest;
    query.sum = 0.0f;
    if (count == 0 || query.first < first) first = query.first;
    if (count == 0 || query.last > last) last = query.last;
    ++count;
  }

  // Repeats the last query up to `size`; its copies are computed and not stored.
  void FillTo(int size, int64_t head_dim) {
    for (int n = count; n < size; ++n) {
      queries[n] = queries[count - 1];
      queries[n].out = nullptr;
      for (int64_t d = 0; d < head_dim; ++d) {
        q[n][d] = q[count - 1][d];
        acc[n][d] = 0.0f;
      }
    }
  }

  void Finish(int64_t head_dim) {
    for (int n = 0; n < count; ++n) {
      const float inverse = 1.0f / queries[n].sum;
      for (int64_t d = 0; d < head_dim; ++d) queries[n].out[d] = acc[n][d] * inverse;
    }
  }
};

// Keys and values of blocks of one KV head, those of a chunk that are needed.
template <class Element>
struct KvChunk {
  int64_t base;  // position of its first key
  KvBlockParts<const Element> blocks[kAttentionChunk / kKvBlockTokens];
};

template <class V, class K>
struct AttentionChunk {
  using F = typename V::F;
  using Tile = AttentionTile<V>;
  using Chunk = KvChunk<typename K::Element>;
  static constexpr int kL = V::kLanes;
  static constexpr int kKeyVectors = static_cast<int>(kKvBlockTokens) / kL;

  // Scores of kBlocks blocks from `block` on: as many keys at once as registers hold sums.
  // kFetches: of a cache that is read once, the values of the same keys are asked for meanwhile.
  template <int kN, int kBlocks, bool kFetches>
  static void Scores(const AttentionArgs& args, const Chunk& chunk, int64_t block, Tile* tile) {
    constexpr int kVectors = kBlocks * kKeyVectors;
    F acc[kN][kVectors];
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kVectors; ++v) acc[n][v] = V::Zero();
    }
    for (int64_t d = 0; d < args.kv.head_dim; ++d) {
      F key[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = d * kKvBlockTokens + v % kKeyVectors * kL;
        key[v] = K::Load(chunk.blocks[block + v / kKeyVectors].keys + at);
        if constexpr (kFetches) V::Prefetch(chunk.blocks[block + v / kKeyVectors].values + at);
      }
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) {
        const F q = V::Set1(tile->q[n][d]);
        for (int v = 0; v < kVectors; ++v) acc[n][v] = V::Fma(q, key[v], acc[n][v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const int64_t b = block + v / kKeyVectors;
      for (int n = 0; n < kN; ++n) {
        if constexpr (K::kScaled) {
          acc[n][v] = V::Mul(acc[n][v], V::Load(chunk.blocks[b].key_scales + v % kKeyVectors * kL));
        }
        V::Store(tile->p[n] + b * kKvBlockTokens + v % kKeyVectors * kL, acc[n][v]);
      }
    }
  }

  static constexpr float kHighest = 3.0e38f;
  // Limits of which a window keeps the first or the last lanes of a vector.
  struct Limits {
    float lanes[3 * kL];  // cut, highest, cut
  };
  static constexpr Limits LimitsOf(float cut) {
    Limits limits = {};
    for (int i = 0; i < 3 * kL; ++i) limits.lanes[i] = i / kL == 1 ? kHighest : cut;
    return limits;
  }
  static constexpr Limits kCutScores = LimitsOf(Tile::kLowest);
  static constexpr Limits kCutWeights = LimitsOf(0.0f);

  // x, cut down to the limits' outer value in the lanes of keys [i, i + kL) outside [low, high).
  // A NaN there (of a slot that was never written) is cut as well.
  static F CutOutside(F x, int64_t i, int64_t low, int64_t high, const Limits& limits) {
    if (i + kL > high) {
      const int64_t kept = high > i ? high - i : 0;
      x = V::Min(x, V::Load(limits.lanes + 2 * kL - kept));
    }
    if (i < low) {
      const int64_t gone = low - i < kL ? low - i : kL;
      x = V::Min(x, V::Load(limits.lanes + kL - gone));
    }
    return x;
  }

  // Turns the scores of keys [base, base + count) of query n into weights relative to its running
  // maximum, and returns the factor for what it has summed before. count is a multiple of 16.
  static float Weigh(const AttentionArgs& args, const Chunk& chunk, int n, int64_t first_block,
                     int64_t count, Tile* tile) {
    typename Tile::Query& query = tile->queries[n];
    float* p = tile->p[n];
    if (args.softcap > 0.0f) Elementwise<V>::Softcap(p, args.softcap, 0, count);
    const int64_t low = query.first - chunk.base;
    const int64_t high = query.last + 1 - chunk.base;
    F largest = V::Set1(Tile::kLowest);
    for (int64_t i = first_block * kKvBlockTokens; i < count; i += kL) {
      const F score = CutOutside(V::Load(p + i), i, low, high, kCutScores);
      largest = V::Max(largest, score);
      V::Store(p + i, score);
    }
    const float before = query.largest;
    const float now = V::MaxLane(largest);
    if (now > before) query.largest = now;
    const F offset = V::Set1(query.largest);
    F sums = V::Zero();
    for (int64_t i = first_block * kKvBlockTokens; i < count; i += kL) {
      F weight = Math<V>::Exp(V::Sub(V::Load(p + i), offset));
      weight = CutOutside(weight, i, low, high, kCutWeights);
      sums = V::Add(sums, weight);
      if constexpr (K::kScaled) {
        const float* scales = chunk.blocks[i / kKvBlockTokens].value_scales;
        weight = V::Mul(weight, V::Load(scales + i % kKvBlockTokens));
      }
      V::Store(p + i, weight);
    }
    float factor = 1.0f;
    if (query.largest > before) {
      float lanes[kL];
      V::Store(lanes, Math<V>::Exp(V::Set1(before - query.largest)));
      factor = before == Tile::kLowest ? 0.0f : lanes[0];
    }
    query.sum = query.sum * factor + V::Sum(sums);
    return factor;
  }

  // acc[n][d..] += sum of weights * values for keys [low, high) of the chunk, kVectors vectors
  // wide. kFetches: the keys of `next_chunk` are asked for meanwhile, where it has such blocks.
  template <int kN, int kVectors, bool kFetches>
  static void AddValues(const AttentionArgs& args, const Chunk& chunk, const Chunk& next_chunk,
                        const float* factors, int64_t low, int64_t high, int64_t d, Tile* tile) {
    F acc[kN][kVectors];
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kVectors; ++v) {
        acc[n][v] = V::Mul(V::Load(tile->acc[n] + d + v * kL), V::Set1(factors[n]));
      }
    }
    for (int64_t i = low; i < high;) {
      const int64_t block = i / kKvBlockTokens;
      const int64_t next = (block + 1) * kKvBlockTokens;
      const int64_t at = i % kKvBlockTokens * args.kv.head_dim + d;
      const auto* value = chunk.blocks[block].values + at;
      const auto* ahead = value;  // which is there already
      if (kFetches && next_chunk.blocks[block].keys != nullptr) {
        ahead = next_chunk.blocks[block].keys + at;
      }
      for (const int64_t end = next < high ? next : high; i < end; ++i) {
        F in[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          in[v] = K::Load(value + v * kL);
          if constexpr (kFetches) V::Prefetch(ahead + v * kL);
        }
#pragma GCC unroll 8
        for (int n = 0; n < kN; ++n) {
          const F weight = V::Set1(tile->p[n][i]);
          for (int v = 0; v < kVectors; ++v) acc[n][v] = V::Fma(weight, in[v], acc[n][v]);
        }
        value += args.kv.head_dim;
        ahead += args.kv.head_dim;
      }
    }
    for (int n = 0; n < kN; ++n) {
      for (int v = 0; v < kVectors; ++v) V::Store(tile->acc[n] + d + v * kL, acc[n][v]);
    }
  }

  template <int kN, bool kFetches>
  static void AllValues(const AttentionArgs& args, const Chunk& chunk, const Chunk& next,
                        const float* factors, int64_t low, int64_t high, Tile* tile) {
    // As many accumulators as registers hold.
    constexpr int kWide = kL == 16 && kN <= 4 ? 4 : 2;
    const int64_t head_dim = args.kv.head_dim;
    int64_t d = 0;
    for (; d + kWide * kL <= head_dim; d += kWide * kL) {
      AddValues<kN, kWide, kFetches>(args, chunk, next, factors, low, high, d, tile);
    }
    for (; d + kL <= head_dim; d += kL) {
      AddValues<kN, 1, kFetches>(args, chunk, next, factors, low, high, d, tile);
    }
    for (; d < head_dim; ++d) {
      for (int n = 0; n < kN; ++n) {
        float sum = tile->acc[n][d] * factors[n];
        for (int64_t i = low; i < high; ++i) {
          const auto* values = chunk.blocks[i / kKvBlockTokens].values;
          sum += tile->p[n][i] * K::Value(values[i % kKvBlockTokens * head_dim + d]);
        }
        tile->acc[n][d] = sum;
      }
    }
  }

  // `next`: the chunk that comes next, to fetch from while this one is computed.
  template <int kN, bool kFetches>
  static void Run(const AttentionArgs& args, const Chunk& chunk, const Chunk& next, Tile* tile) {
    constexpr int kBlocks = kL != 16 ? 1 : (kN >= 8 ? 2 : (kN >= 4 ? 4 : 8));
    const int64_t base = chunk.base;
    const int64_t end =
        tile->last + 1 < base + kAttentionChunk ? tile->last + 1 : base + kAttentionChunk;
    const int64_t begin = tile->first > base ? tile->first : base;
    const int64_t first_block = (begin - base) / kKvBlockTokens;
    const int64_t blocks = (end - base + kKvBlockTokens - 1) / kKvBlockTokens;
    int64_t b = first_block;
    for (; b + kBlocks <= blocks; b += kBlocks) {
      Scores<kN, kBlocks, kFetches>(args, chunk, b, tile);
    }
    for (; b < blocks; ++b) Scores<kN, 1, kFetches>(args, chunk, b, tile);
    float factors[kN];
    for (int n = 0; n < kN; ++n) {
      factors[n] = Weigh(args, chunk, n, first_block, blocks * kKvBlockTokens, tile);
    }
    AllValues<kN, kFetches>(args, chunk, next, factors, begin - base, end - base, tile);
  }
};

}  // namespace rempart::kernels
