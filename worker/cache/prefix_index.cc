// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/prefix_index.h"

#include <algorithm>

#include "common/check.h"

namespace rempart::worker {

PrefixIndex::PrefixIndex(int32_t blocks_total, int32_t block_size)
    : block_size_(block_size),
      nodes_(static_cast<size_t>(blocks_total)),
      tokens_(static_cast<size_t>(blocks_total) * static_cast<size_t>(block_size)) {}

bool PrefixIndex::Holds(BlockId block, BlockId parent, absl::Span<const int32_t> tokens) const {
  const auto own = tokens_.begin() + int64_t{block} * block_size_;
  return nodes_[block].parent == parent && std::equal(tokens.begin(), tokens.end(), own);
}

BlockId PrefixIndex::Find(const PrefixKey& key, BlockId parent,
                          absl::Span<const int32_t> tokens) const {
  CHECK_EQ(static_cast<int32_t>(tokens.size()), block_size_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end() || !Holds(found->second, parent, tokens)) return kNoBlock;
  return found->second;
}

bool PrefixIndex::Insert(const PrefixKey& key, BlockId parent, absl::Span<const int32_t> tokens,
                         BlockId block) {
  CHECK_EQ(static_cast<int32_t>(tokens.size()), block_size_);
  CHECK_EQ(nodes_[block].registration, 0u) << "block " << block << " is here already";
  if (!by_key_.try_emplace(key, block).second) return false;
  if (parent != kNoBlock) {
    CHECK_GT(nodes_[parent].registration, 0u) << "block " << parent << " is not here";
    ++nodes_[parent].children;
  }
  nodes_[block] = {key, parent, 0, ++last_registration_};
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{block} * block_size_);
  return true;
}

void PrefixIndex::Remove(BlockId block) {
  Node& node = nodes_[block];
  CHECK_GT(node.registration, 0u);
  CHECK_EQ(node.children, 0) << "block " << block << " is evicted before its children";
  if (node.parent != kNoBlock) --nodes_[node.parent].children;
  by_key_.erase(node.key);
  node = Node{};
}

}  // namespace rempart::worker
