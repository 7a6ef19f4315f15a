// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/block_pool.h"

#include "common/check.h"

namespace rempart::worker {

BlockPool::BlockPool(int32_t blocks_total) {
  CHECK_GT(blocks_total, 0);
  references_.assign(blocks_total, 0);
  free_.reserve(blocks_total);
  for (BlockId block = blocks_total - 1; block >= 0; --block) free_.push_back(block);
}

bool BlockPool::Allocate(int32_t count, std::vector<BlockId>& out) {
  CHECK_GE(count, 0);
  if (count > blocks_free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const BlockId block = free_.back();
    free_.pop_back();
    CHECK_EQ(references_[block], 0);
    references_[block] = 1;
    out.push_back(block);
  }
  return true;
}

void BlockPool::Retain(BlockId block) {
  CHECK_GT(references_[block], 0);
  ++references_[block];
}

void BlockPool::Release(BlockId block) {
  CHECK_GT(references_[block], 0);
  if (--references_[block] == 0) free_.push_back(block);
}

}  // namespace rempart::worker
