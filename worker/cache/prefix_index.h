// SPDX-License-Identifier: Apache-2.0
// Which block holds the keys and values of which tokens. A tree: a block's parent holds the 16
// tokens before its own. The engine thread is the only caller.
//
// Invariants:
//  1. A found block holds exactly the tokens asked for, after exactly the parent asked for: both
//  are
//     compared, so equal hashes of different tokens cost a miss, never a wrong answer.
//  2. A parent stays while it has children (leaves are evicted first), so a block that is still
//  here
//     under the registration that a caller saw has all its ancestors here as well.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "worker/cache/block_pool.h"
#include "worker/cache/prefix_key.h"

namespace rempart::worker {

class PrefixIndex {
 public:
  PrefixIndex(int32_t blocks_total, int32_t block_size);

  // The block of these tokens after `parent` (kNoBlock: at the start), or kNoBlock.
  BlockId Find(const PrefixKey& key, BlockId parent, absl::Span<const int32_t> tokens) const;
  // False, and nothing changed, when the key is taken.
  bool Insert(const PrefixKey& key, BlockId parent, absl::Span<const int32_t> tokens,
              BlockId block);
  // A leaf only.
  void Remove(BlockId block);

  // A number that this block's present content has alone; 0 when it is not here.
  uint64_t registration(BlockId block) const { return nodes_[block].registration; }
  bool IsLeaf(BlockId block) const { return nodes_[block].children == 0; }
  int32_t size() const { return static_cast<int32_t>(by_key_.size()); }

 private:
  struct Node {
    PrefixKey key;
    BlockId parent = kNoBlock;
    int32_t children = 0;
    uint64_t registration = 0;
  };

  bool Holds(BlockId block, BlockId parent, absl::Span<const int32_t> tokens) const;

  const int32_t block_size_;
  uint64_t last_registration_ = 0;
  std::vector<Node> nodes_;      // [blocks_total]
  std::vector<int32_t> tokens_;  // [blocks_total, block_size]
  absl::flat_hash_map<PrefixKey, BlockId> by_key_;
};

}  // namespace rempart::worker
