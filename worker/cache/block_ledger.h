// SPDX-License-Identifier: Apache-2.0
// Which sequence holds which KV blocks: allocation, the prefix cache, forks. The engine and the
// simulation of the scheduler both keep their books here. The engine thread is the only caller.
//
// Invariants:
//  1. A sequence holds each block of its table once, and what it holds is never evicted.
//  2. With the prefix cache on, the full blocks that a sequence has computed are in the index, and
//     equal ones of several sequences are one block.
//  3. When every sequence has released its blocks, none is held.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/cache/block_pool.h"
#include "worker/cache/prefix_index.h"
#include "worker/cache/prefix_key.h"

namespace rempart::worker {

// One sequence's page of the ledger.
struct SequenceBlocks {
  std::vector<BlockId> blocks;  // the block table
  // Held as well: a partly filled block of the sequence that this one was forked from; its content
  // goes into the next block that is added.
  BlockId copy_source = kNoBlock;

  PrefixKey salt;               // what the first key follows
  std::vector<PrefixKey> keys;  // of its first full blocks, as far as they were needed
  int32_t published = 0;        // so many of `blocks` are in the index
  bool unpublishable = false;   // a key of it is taken by other tokens: the rest stays private

  // While it holds nothing: its prefix in the cache, not held, and the blocks' registrations.
  std::vector<BlockId> match;
  std::vector<uint64_t> match_registrations;
};

struct BlockLedgerOptions {
  int32_t blocks_total = 0;
  int32_t block_size = 16;
  bool prefix_cache = true;
};

// `tokens` are all known tokens of the sequence, `computed` how many of them have keys and values
// in its blocks.
class BlockLedger {
 public:
  explicit BlockLedger(const BlockLedgerOptions& options);

  const BlockPool& pool() const { return pool_; }
  uint64_t evictions() const { return evictions_; }
  void HoldBackFresh() { pool_.HoldBackFresh(); }
  void GiveOutFresh() { pool_.GiveOutFresh(); }

  // Brings `match` up to date, for a sequence that holds nothing. At least one token is left out of
  // it: the logits need one to compute.
  void Match(SequenceBlocks& sequence, absl::Span<const int32_t> tokens);
  // Blocks that others have filled meanwhile take the place of its own that it would fill next.
  // Returns the new `computed`.
  int32_t CatchUp(SequenceBlocks& sequence, absl::Span<const int32_t> tokens, int32_t computed);
  // A fork that alone holds its copy source takes it over, uncopied.
  void SettleFork(SequenceBlocks& sequence);
  // The same number for all sequences that would fill the same block next; 0 for a block that the
  // cache could not give them anyway.
  uint64_t NextBlockLabel(SequenceBlocks& sequence, absl::Span<const int32_t> tokens,
                          int32_t computed) const;

  // Holds the matched blocks and makes them its own. Returns how many tokens they hold.
  int32_t TakeMatch(SequenceBlocks& sequence);
  // Adds blocks. Returns the block whose content the first of them is to be given before anything
  // is written, or kNoBlock. CHECKs that the blocks are available.
  BlockId Add(SequenceBlocks& sequence, int32_t count);
  // Puts the blocks that are full now into the index.
  void Publish(SequenceBlocks& sequence, absl::Span<const int32_t> tokens, int32_t computed);
  // `to` shares what `from` has computed of the `tokens_shared` first tokens.
  void Fork(const SequenceBlocks& from, SequenceBlocks& to, int32_t tokens_shared);
  // Gives everything back; full blocks stay in the cache.
  void Release(SequenceBlocks& sequence);

 private:
  const PrefixKey& Key(SequenceBlocks& sequence, absl::Span<const int32_t> tokens,
                       size_t index) const;
  absl::Span<const int32_t> BlockTokens(absl::Span<const int32_t> tokens, size_t index) const;
  // Full blocks of all tokens but the last.
  size_t Cacheable(absl::Span<const int32_t> tokens) const;

  const BlockLedgerOptions options_;
  PrefixIndex index_;
  BlockPool pool_;
  uint64_t evictions_ = 0;
};

}  // namespace rempart::worker
