// SPDX-License-Identifier: Apache-2.0
// Which KV blocks are free and who holds the others. It owns ids and reference counts only; the
// memory behind an id belongs to the model. The engine thread is the only caller.
//
// Invariants:
//  1. A block is either on the free list with no reference, or off it with at least one.
//  2. Allocate takes all that was asked or nothing.
#pragma once

#include <cstdint>
#include <vector>

namespace rempart::worker {

using BlockId = int32_t;

class BlockPool {
 public:
  explicit BlockPool(int32_t blocks_total);

  int32_t blocks_total() const { return static_cast<int32_t>(references_.size()); }
  int32_t blocks_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t references(BlockId block) const { return references_[block]; }

  // Appends `count` blocks with one reference each to `out`. False, and nothing taken, when fewer
  // are free.
  [[nodiscard]] bool Allocate(int32_t count, std::vector<BlockId>& out);

  // One more holder of a block that is held.
  void Retain(BlockId block);
  // One holder less; the block is free when it was the last.
  void Release(BlockId block);

 private:
  std::vector<int32_t> references_;  // [blocks_total]
  std::vector<BlockId> free_;        // the last freed is taken first: it is warm in the cache
};

}  // namespace rempart::worker
