// SPDX-License-Identifier: Apache-2.0
// Attention over paged KV with a running maximum (online softmax), in chunks of 128 keys that begin
// at multiples of 128: every query adds its keys in the same order however its prompt was cut into
// steps. Decode: one tile of the queries that share a KV head reads the cache as it is. Prefill: a
// chunk is converted to F32 once for up to eight tiles. Blocks lie anywhere, so decode asks for
// what comes next while it computes: values under scores, the next keys under values. Bytes: K and
// V of the context once per call; bound: multiplications in prefill, memory in decode.
#pragma once

#include "kernels/cpu/attention_tile.inl.h"

namespace rempart::kernels {

template <class V, class K>
struct AttentionKernel {
  using Tile = AttentionTile<V>;
  using Element = typename K::Element;
  using Float = typename KvFormats<V>::template Converted<K>;
  static constexpr int kMaxTiles = 8;
  static constexpr int64_t kBlocks = kAttentionChunk / kKvBlockTokens;

  // A chunk of one head as floats.
  struct Converted {
    alignas(64) float keys[kBlocks][kAttentionMaxDim * kKvBlockTokens];
    alignas(64) float values[kBlocks][kAttentionMaxDim * kKvBlockTokens];
  };

  // The blocks of the chunk from `base` on that hold keys [first, last].
  static KvChunk<Element> ChunkAt(const AttentionArgs& args, int64_t kv_head, int64_t base,
                                  int64_t first, int64_t last) {
    KvChunk<Element> chunk = {};
    chunk.base = base;
    for (int64_t b = 0; b < kBlocks; ++b) {
      const int64_t position = base + b * kKvBlockTokens;
      if (position + kKvBlockTokens <= first || position > last) continue;
      const int32_t block = args.block_table[position / kKvBlockTokens];
      const auto parts = KvPartsOf<V, Element>(args.kv, block, kv_head);
      chunk.blocks[b] = {parts.keys, parts.values, parts.key_scales, parts.value_scales};
    }
    return chunk;
  }

  static KvChunk<float> Convert(const AttentionArgs& args, const KvChunk<Element>& chunk,
                                Converted* to) {
    const int64_t count = args.kv.head_dim * kKvBlockTokens;
    KvChunk<float> out = {};
    out.base = chunk.base;
    for (int64_t b = 0; b < kBlocks; ++b) {
      const auto& from = chunk.blocks[b];
      if (from.keys == nullptr) continue;
      for (int64_t i = 0; i < count; i += V::kLanes) {
        V::Store(to->keys[b] + i, K::Load(from.keys + i));
        V::Store(to->values[b] + i, K::Load(from.values + i));
      }
      out.blocks[b] = {to->keys[b], to->values[b], from.key_scales, from.value_scales};
    }
    return out;
  }

  template <class Kv, bool kFetches>
  static void RunTile(const AttentionArgs& args, const KvChunk<typename Kv::Element>& chunk,
                      const KvChunk<typename Kv::Element>& next, Tile* tile) {
    using Step = AttentionChunk<V, Kv>;
    if (tile->count == 1) return Step::template Run<1, kFetches>(args, chunk, next, tile);
    if (tile->count == 2) return Step::template Run<2, kFetches>(args, chunk, next, tile);
    if constexpr (Tile::kMax == 8) {
      if (tile->count > 4) return Step::template Run<8, kFetches>(args, chunk, next, tile);
    }
    Step::template Run<4, kFetches>(args, chunk, next, tile);
  }

  static void RunTiles(const AttentionArgs& args, int64_t kv_head, Tile* tiles, int count) {
    int64_t first = tiles[0].first, last = tiles[0].last;
    for (int i = 0; i < count; ++i) {
      first = tiles[i].first < first ? tiles[i].first : first;
      last = tiles[i].last > last ? tiles[i].last : last;
      const int size = tiles[i].count;
      tiles[i].FillTo(size <= 2 ? size : (size <= 4 ? 4 : Tile::kMax), args.kv.head_dim);
    }
    Converted converted;
    KvChunk<Element> next =
        ChunkAt(args, kv_head, first / kAttentionChunk * kAttentionChunk, first, last);
    while (next.base <= last) {
      const KvChunk<Element> chunk = next;
      const int64_t base = chunk.base;
      next = ChunkAt(args, kv_head, base + kAttentionChunk, first, last);
      if (count == 1) {
        RunTile<K, true>(args, chunk, next, tiles);
        continue;
      }
      const KvChunk<float> floats = Convert(args, chunk, &converted);
      for (int i = 0; i < count; ++i) {
        if (tiles[i].last < base || tiles[i].first >= base + kAttentionChunk) continue;
        RunTile<Float, false>(args, floats, floats, tiles + i);
      }
    }
    for (int i = 0; i < count; ++i) tiles[i].Finish(args.kv.head_dim);
  }

  static void Run(const AttentionArgs& args, int64_t begin, int64_t end) {
    Tile tiles[kMaxTiles];
    const int64_t group = args.num_heads / args.kv.kv_heads;
    for (int64_t item = begin; item < end;) {
      const int64_t kv_head = item / args.num_tokens / group;
      int count = 0;
      while (count < kMaxTiles && item < end && item / args.num_tokens / group == kv_head) {
        Tile& tile = tiles[count++];
        tile.Clear();
        // Neighbours that share the KV head: tokens of one head, or heads of one token.
        while (tile.count < Tile::kMax && item < end && item / args.num_tokens / group == kv_head) {
          if (tile.count > 0 && args.num_tokens >= Tile::kMax && item % args.num_tokens == 0) break;
          tile.Add(args, item / args.num_tokens, item % args.num_tokens);
          ++item;
        }
      }
      RunTiles(args, kv_head, tiles, count);
    }
  }
};

template <class V>
void Attention(const AttentionArgs& args, int64_t begin, int64_t end) {
  KvFormats<V>::Visit(args.kv.type, [&](auto format) {
    AttentionKernel<V, decltype(format)>::Run(args, begin, end);
  });
}

}  // namespace rempart::kernels
