// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/block_pool.h"

#include <utility>

#include "common/check.h"

namespace rempart::worker {

BlockPool::BlockPool(int32_t blocks_total, std::function<void(BlockId)> on_evict)
    : on_evict_(std::move(on_evict)) {
  CHECK_GT(blocks_total, 0);
  references_.assign(blocks_total, 0);
  kept_.assign(blocks_total, false);
  free_.reserve(blocks_total);
  older_.assign(blocks_total + 1, blocks_total);
  newer_.assign(blocks_total + 1, blocks_total);
}

int32_t BlockPool::blocks_available() const {
  return static_cast<int32_t>(free_.size()) + cached_count_ +
         (fresh_held_back_ ? 0 : blocks_fresh());
}

void BlockPool::Unlink(BlockId block) {
  newer_[older_[block]] = newer_[block];
  older_[newer_[block]] = older_[block];
  --cached_count_;
}

BlockId BlockPool::EvictOldest() {
  const BlockId block = newer_[blocks_total()];
  CHECK_NE(block, blocks_total());
  Unlink(block);
  kept_[block] = false;
  if (on_evict_) on_evict_(block);
  return block;
}

BlockId BlockPool::Take() {
  if (!free_.empty()) {
    const BlockId block = free_.back();
    free_.pop_back();
    return block;
  }
  if (!fresh_held_back_ && blocks_fresh() > 0) return first_fresh_++;
  return EvictOldest();
}

bool BlockPool::Allocate(int32_t count, std::vector<BlockId>& out) {
  CHECK_GE(count, 0);
  if (count > blocks_available()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const BlockId block = Take();
    CHECK_EQ(references_[block], 0);
    references_[block] = 1;
    out.push_back(block);
  }
  blocks_held_ += count;
  return true;
}

void BlockPool::Retain(BlockId block) {
  if (references_[block] == 0) {
    CHECK(kept_[block]) << "block " << block << " is free";
    Unlink(block);
    ++blocks_held_;
  }
  ++references_[block];
}

void BlockPool::Release(BlockId block) {
  CHECK_GT(references_[block], 0);
  if (--references_[block] > 0) return;
  --blocks_held_;
  if (!kept_[block]) return free_.push_back(block);
  const BlockId end = blocks_total();
  older_[block] = older_[end];
  newer_[block] = end;
  newer_[older_[end]] = block;
  older_[end] = block;
  ++cached_count_;
}

void BlockPool::Unkeep(BlockId block) {
  CHECK_GT(references_[block], 0);
  kept_[block] = false;
}

void BlockPool::Keep(BlockId block) {
  CHECK_GT(references_[block], 0);
  kept_[block] = true;
}

}  // namespace rempart::worker
