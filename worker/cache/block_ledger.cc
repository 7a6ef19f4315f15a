// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/block_ledger.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace rempart::worker {

BlockLedger::BlockLedger(const BlockLedgerOptions& options)
    : options_(options),
      index_(options.blocks_total, options.block_size),
      pool_(options.blocks_total, [this](BlockId block) {
        index_.Remove(block);
        ++evictions_;
      }) {}

absl::Span<const int32_t> BlockLedger::BlockTokens(absl::Span<const int32_t> tokens,
                                                   size_t index) const {
  const size_t size = static_cast<size_t>(options_.block_size);
  return tokens.subspan(index * size, size);
}

size_t BlockLedger::Cacheable(absl::Span<const int32_t> tokens) const {
  return options_.prefix_cache ? (tokens.size() - 1) / options_.block_size : 0;
}

const PrefixKey& BlockLedger::Key(SequenceBlocks& sequence, absl::Span<const int32_t> tokens,
                                  size_t index) const {
  std::vector<PrefixKey>& keys = sequence.keys;
  while (keys.size() <= index) {
    keys.push_back(
        NextKey(keys.empty() ? sequence.salt : keys.back(), BlockTokens(tokens, keys.size())));
  }
  return keys[index];
}

void BlockLedger::Match(SequenceBlocks& sequence, absl::Span<const int32_t> tokens) {
  CHECK(sequence.blocks.empty());
  std::vector<BlockId>& match = sequence.match;
  std::vector<uint64_t>& seen = sequence.match_registrations;
  while (!match.empty() && index_.registration(match.back()) != seen.back()) {
    match.pop_back();
    seen.pop_back();
  }
  while (match.size() < Cacheable(tokens)) {
    const BlockId found =
        index_.Find(Key(sequence, tokens, match.size()), match.empty() ? kNoBlock : match.back(),
                    BlockTokens(tokens, match.size()));
    if (found == kNoBlock) break;
    match.push_back(found);
    seen.push_back(index_.registration(found));
  }
}

int32_t BlockLedger::CatchUp(SequenceBlocks& sequence, absl::Span<const int32_t> tokens,
                             int32_t computed) {
  size_t next = static_cast<size_t>(computed / options_.block_size);
  for (; next < Cacheable(tokens); ++next) {
    const BlockId found =
        index_.Find(Key(sequence, tokens, next), next == 0 ? kNoBlock : sequence.blocks[next - 1],
                    BlockTokens(tokens, next));
    if (found == kNoBlock) break;
    pool_.Retain(found);
    pool_.Release(std::exchange(sequence.blocks[next], found));
    sequence.published = static_cast<int32_t>(next) + 1;
    computed = sequence.published * options_.block_size;
  }
  return computed;
}

void BlockLedger::SettleFork(SequenceBlocks& sequence) {
  const BlockId source = sequence.copy_source;
  if (source == kNoBlock || pool_.references(source) > 1) return;
  if (index_.registration(source) != 0) {
    // The one it was forked from has filled the block and gone. With children in the cache there is
    // room for a copy; without, the cache gives the block up.
    if (!index_.IsLeaf(source)) return;
    index_.Remove(source);
    pool_.Unkeep(source);
  }
  sequence.blocks.push_back(std::exchange(sequence.copy_source, kNoBlock));
}

uint64_t BlockLedger::NextBlockLabel(SequenceBlocks& sequence, absl::Span<const int32_t> tokens,
                                     int32_t computed) const {
  const size_t next = static_cast<size_t>(computed / options_.block_size);
  return next < Cacheable(tokens) ? Key(sequence, tokens, next).low | 1 : 0;
}

int32_t BlockLedger::TakeMatch(SequenceBlocks& sequence) {
  CHECK(sequence.blocks.empty());
  for (const BlockId block : sequence.match) pool_.Retain(block);
  sequence.blocks = std::exchange(sequence.match, {});
  sequence.match_registrations.clear();
  sequence.published = static_cast<int32_t>(sequence.blocks.size());
  return sequence.published * options_.block_size;
}

BlockId BlockLedger::Add(SequenceBlocks& sequence, int32_t count) {
  CHECK(pool_.Allocate(count, sequence.blocks))
      << count << " blocks planned, " << pool_.blocks_available() << " available";
  if (count == 0 || sequence.copy_source == kNoBlock) return kNoBlock;
  const BlockId source = std::exchange(sequence.copy_source, kNoBlock);
  pool_.Release(source);
  return source;
}

void BlockLedger::Publish(SequenceBlocks& sequence, absl::Span<const int32_t> tokens,
                          int32_t computed) {
  if (!options_.prefix_cache) return;
  const int32_t full = computed / options_.block_size;
  for (int32_t& i = sequence.published; i < full && !sequence.unpublishable; ++i) {
    const size_t at = static_cast<size_t>(i);
    const PrefixKey& key = Key(sequence, tokens, at);
    const BlockId parent = i == 0 ? kNoBlock : sequence.blocks[at - 1];
    const absl::Span<const int32_t> own = BlockTokens(tokens, at);
    if (index_.Insert(key, parent, own, sequence.blocks[at])) {
      pool_.Keep(sequence.blocks[at]);
    } else if (const BlockId twin = index_.Find(key, parent, own); twin != kNoBlock) {
      pool_.Retain(twin);
      pool_.Release(std::exchange(sequence.blocks[at], twin));
    } else {
      sequence.unpublishable = true;
      return;
    }
  }
}

void BlockLedger::Fork(const SequenceBlocks& from, SequenceBlocks& to, int32_t tokens_shared) {
  CHECK(to.blocks.empty());
  const size_t full = static_cast<size_t>(tokens_shared / options_.block_size);
  to.match.clear();
  to.match_registrations.clear();
  to.salt = from.salt;
  to.keys.assign(from.keys.begin(), from.keys.begin() + std::min(from.keys.size(), full));
  to.blocks.assign(from.blocks.begin(), from.blocks.begin() + full);
  to.published = std::min(from.published, static_cast<int32_t>(full));
  to.unpublishable = from.unpublishable;
  if (tokens_shared % options_.block_size != 0) to.copy_source = from.blocks[full];
  for (const BlockId block : to.blocks) pool_.Retain(block);
  if (to.copy_source != kNoBlock) pool_.Retain(to.copy_source);
}

void BlockLedger::Release(SequenceBlocks& sequence) {
  if (sequence.copy_source != kNoBlock) {
    pool_.Release(std::exchange(sequence.copy_source, kNoBlock));
  }
  // From the end, so that a parent is evicted after its children.
  for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block) {
    pool_.Release(*block);
  }
  sequence.blocks.clear();
  sequence.published = 0;
  sequence.unpublishable = false;
}

}  // namespace rempart::worker
