// SPDX-License-Identifier: Apache-2.0
// Index arithmetic of the paged cache, of decode splits and prefill tiles, of rotary pairs, of
// scales and of vocabulary parts, and of what ranks show each other. Host and device; all offsets
// are 64-bit, so that a cache of more than 2^31 elements works, which tests/kernels/cuda checks.
#pragma once

#include "kernels/cuda/numbers.h"
#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

// Tokens [begin, end).
struct TokenRange {
  int64_t begin;
  int64_t end;
};

REMPART_HD int64_t KvBlockOf(const DeviceBatch& batch, int64_t slice, int64_t position) {
  return batch.block_tables[slice * batch.table_stride + position / kKvBlockTokens];
}
// Elements into a block: the row [head_dim] of this head and position.
REMPART_HD int64_t KRowInBlock(const DeviceKv& kv, int64_t kv_head, int64_t position) {
  return (kv_head * kKvBlockTokens + position % kKvBlockTokens) * kv.head_dim;
}
REMPART_HD int64_t VRowInBlock(const DeviceKv& kv, int64_t kv_head, int64_t position) {
  return KRowInBlock(kv, kv.kv_heads + kv_head, position);
}
REMPART_HD uint8_t* KvBlockStart(const DeviceKv& kv, int64_t block) {
  return static_cast<uint8_t*>(kv.data) + block * kv.block_stride_bytes;
}

// What the query at `position` sees.
REMPART_HD TokenRange VisibleTokens(int64_t position, int64_t window) {
  return {window > 0 ? Max<int64_t>(0, position - window + 1) : 0, position + 1};
}

// The splits of a decode that hold visible tokens, and the visible tokens of one of them.
REMPART_HD TokenRange VisibleSplits(int64_t position, int64_t window, int64_t split_tokens) {
  const TokenRange seen = VisibleTokens(position, window);
  return {seen.begin / split_tokens, CeilDivide(seen.end, split_tokens)};
}
REMPART_HD TokenRange SplitTokens(int64_t split, int64_t position, int64_t window,
                                  int64_t split_tokens) {
  const TokenRange seen = VisibleTokens(position, window);
  return {Max(seen.begin, split * split_tokens), Min(seen.end, (split + 1) * split_tokens)};
}
// Floats of the partial result of one (slice, head, split): maximum, sum, then head_dim values.
REMPART_HD int64_t PartialFloats(int64_t head_dim) { return head_dim + 2; }
REMPART_HD int64_t PartialOffset(int64_t slice, int64_t head, int64_t split, int64_t num_heads,
                                 int64_t head_dim, int64_t max_splits) {
  return ((slice * num_heads + head) * max_splits + split) * PartialFloats(head_dim);
}

// What the queries at positions [first, last] see together, from a whole tile of keys on.
REMPART_HD TokenRange TileTokens(int64_t first, int64_t last, int64_t window, int64_t key_tile) {
  return {VisibleTokens(first, window).begin / key_tile * key_tile, last + 1};
}

// Elements of the pair `index` (< head_dim / 2) of a head; those from rotary_dim / 2 on are not
// rotated.
struct RotaryPair {
  int64_t first;
  int64_t second;
};
REMPART_HD RotaryPair RotaryPairOf(int64_t index, int64_t rotary_dim, bool is_interleaved) {
  const int64_t half = rotary_dim / 2;
  if (index >= half) return {2 * index, 2 * index + 1};
  if (is_interleaved) return {2 * index, 2 * index + 1};
  return {index, index + half};
}

// Where the scale of an element of kFP8Block lies, and that of a token's group of columns
// (QuantizeRowsArgs).
REMPART_HD int64_t BlockScaleAt(int64_t row, int64_t col, int64_t cols) {
  return row / kScaleBlock * BlockScaleStride(cols) + col / kScaleBlock;
}
REMPART_HD int64_t GroupScaleAt(int64_t token, int64_t group, int64_t padded_tokens) {
  return group * padded_tokens + token;
}

// Where the logit of a token lies in gathered parts (SampleArgs).
REMPART_HD int64_t LogitOffset(int64_t row, int64_t id, int64_t part_size, int64_t part_stride) {
  return id / part_size * part_stride + row * part_size + id % part_size;
}

// A rank's slab (PeerGroup): flags [kAllReduceBlocks, kMaxPeers] that its peers write, the number
// of rounds so far [kAllReduceBlocks], and two buffers, used in turn.
REMPART_HD uint64_t* PeerFlag(void* slab, int64_t block, int from) {
  return static_cast<uint64_t*>(slab) + block * kMaxPeers + from;
}
REMPART_HD uint32_t* PeerRounds(void* slab) {
  return static_cast<uint32_t*>(slab) + 2 * kAllReduceBlocks * kMaxPeers;
}
REMPART_HD uint8_t* PeerBuffer(void* slab, uint32_t round, int64_t buffer_bytes) {
  return static_cast<uint8_t*>(slab) + kPeerFlagBytes + (round & 1) * buffer_bytes;
}
static_assert(kPeerFlagBytes % 256 == 0);

// The flag of a rank that has entered this round, and whether a flag says so of its writer. Rounds
// wrap around, and a writer may be ahead.
REMPART_HD uint64_t RoundFlag(uint32_t epoch, uint32_t round) {
  return static_cast<uint64_t>(epoch) << 32 | round;
}
REMPART_HD bool HasEntered(uint64_t flag, uint32_t epoch, uint32_t round) {
  return static_cast<uint32_t>(flag >> 32) == epoch &&
         static_cast<int32_t>(static_cast<uint32_t>(flag) - round) >= 0;
}

}  // namespace rempart::kernels::cuda
