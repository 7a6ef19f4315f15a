// SPDX-License-Identifier: Apache-2.0
// Which KV blocks are held, and by how many; which hold nothing; which are cached: held by nobody,
// but with content that somebody may want again. It owns ids and counts only; the memory behind an
// id belongs to the model. The engine thread is the only caller.
//
// Invariants:
//  1. A block is free, cached, or held by at least one.
//  2. Allocate takes all that was asked or nothing. It takes free blocks first, then fresh ones
//     (never held, so without memory behind them), then the cached, the one released longest ago
//     first. Blocks released together are evicted in the order in which they were released.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace rempart::worker {

using BlockId = int32_t;
constexpr BlockId kNoBlock = -1;

class BlockPool {
 public:
  // `on_evict` hears of each cached block whose content is given up.
  explicit BlockPool(int32_t blocks_total, std::function<void(BlockId)> on_evict = {});

  int32_t blocks_total() const { return static_cast<int32_t>(references_.size()); }
  // What Allocate can give.
  int32_t blocks_available() const;
  int32_t blocks_cached() const { return cached_count_; }
  int32_t blocks_held() const { return blocks_held_; }
  int32_t references(BlockId block) const { return references_[block]; }
  // Holders of every block, [blocks_total].
  const std::vector<int32_t>& references() const { return references_; }

  // Appends `count` blocks with one reference each to `out`. False, and nothing taken, when fewer
  // are available.
  [[nodiscard]] bool Allocate(int32_t count, std::vector<BlockId>& out);

  // One more holder of a block that is held or cached.
  void Retain(BlockId block);
  // One holder less; the last one leaves the block free, or cached where it was kept.
  void Release(BlockId block);
  // The content of a held block is to stay when its last holder leaves.
  void Keep(BlockId block);
  void Unkeep(BlockId block);

  // While memory is short: fresh blocks are not given out, so that the pool takes no more memory
  // than it has.
  void HoldBackFresh() { fresh_held_back_ = true; }
  void GiveOutFresh() { fresh_held_back_ = false; }
  bool fresh_held_back() const { return fresh_held_back_; }

 private:
  int32_t blocks_fresh() const { return blocks_total() - first_fresh_; }
  BlockId Take();
  BlockId EvictOldest();
  void Unlink(BlockId block);

  const std::function<void(BlockId)> on_evict_;
  std::vector<int32_t> references_;  // [blocks_total]
  std::vector<bool> kept_;           // [blocks_total]
  std::vector<BlockId> free_;        // the last freed is taken first: it is warm in the CPU's cache
  BlockId first_fresh_ = 0;          // blocks from here on were never held
  bool fresh_held_back_ = false;
  int32_t blocks_held_ = 0;
  // The cached blocks in order of release: a ring through entry blocks_total.
  std::vector<BlockId> older_, newer_;  // [blocks_total + 1]
  int32_t cached_count_ = 0;
};

}  // namespace rempart::worker
