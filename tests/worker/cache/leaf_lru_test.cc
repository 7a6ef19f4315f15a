// SPDX-License-Identifier: Apache-2.0
// Which cached blocks give way: always a leaf, the one released longest ago. Random traffic through
// a ledger is compared with a plain model of that rule. Blocks hold four tokens; a text is written
// as letters.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "worker/cache/block_ledger.h"

namespace rempart::worker {
namespace {

constexpr int32_t kBlock = 4;
constexpr int32_t kBlocks = 14;

std::vector<int32_t> Ids(const std::string& text) { return {text.begin(), text.end()}; }
int32_t Size(const std::string& text) { return static_cast<int32_t>(text.size()); }

// The rule, with texts for blocks: a block is the text from the start to its end.
class Rule {
 public:
  bool Has(const std::string& prefix) const { return blocks_.contains(prefix); }
  // Blocks of `text` that are here, from the start.
  size_t Matched(const std::string& text, size_t most) const {
    size_t count = 0;
    while (count < most && Has(text.substr(0, (count + 1) * kBlock))) ++count;
    return count;
  }
  void Hold(const std::string& prefix) { ++blocks_[prefix].holders; }
  void Release(const std::string& prefix) {
    if (--blocks_[prefix].holders == 0) blocks_[prefix].released = ++clock_;
  }
  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }

  void EvictLeaf() {
    auto oldest = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->second.holders > 0 || HasChildren(block->first)) continue;
      if (oldest == blocks_.end() || block->second.released < oldest->second.released) {
        oldest = block;
      }
    }
    ASSERT_NE(oldest, blocks_.end());
    blocks_.erase(oldest);
  }

 private:
  struct Block {
    int32_t holders = 0;
    int64_t released = 0;
  };
  bool HasChildren(const std::string& prefix) const {
    return std::any_of(blocks_.begin(), blocks_.end(), [&](const auto& other) {
      return other.first.size() > prefix.size() && other.first.starts_with(prefix);
    });
  }

  std::map<std::string, Block> blocks_;
  int64_t clock_ = 0;
};

struct Sequence {
  std::string text;
  SequenceBlocks page;
};

class LeafLru : public ::testing::TestWithParam<uint32_t> {
 protected:
  // One to four blocks of two kinds, and the beginning of another.
  std::string RandomText() {
    std::string text;
    for (uint32_t i = random_() % 4; i < 4; ++i) text += random_() % 3 == 0 ? "bbbb" : "aaaa";
    return text + std::string(1 + random_() % 3, 'c');
  }

  // What the ledger finds of every text, against the rule.
  void Compare() {
    for (uint32_t bits = 0; bits < 16; ++bits) {
      std::string text;
      for (uint32_t i = 0; i < 4; ++i) text += (bits >> i & 1) != 0 ? "bbbb" : "aaaa";
      SequenceBlocks page;
      ledger_.Match(page, Ids(text + "."));
      ASSERT_EQ(page.match.size(), rule_.Matched(text, 4)) << text;
    }
  }

  void Start(const std::string& text) {
    Sequence sequence = {text, {}};
    ledger_.Match(sequence.page, Ids(text));
    const int32_t known = ledger_.TakeMatch(sequence.page);
    const size_t full = text.size() / kBlock;
    ASSERT_EQ(known, static_cast<int32_t>(rule_.Matched(text, full)) * kBlock);
    for (int32_t end = kBlock; end <= known; end += kBlock) rule_.Hold(text.substr(0, end));
    const int32_t more = (Size(text) + kBlock - 1) / kBlock - known / kBlock;
    if (more > ledger_.pool().blocks_available()) {
      sequence.text = text.substr(0, known);
      return Release(sequence);
    }
    for (int32_t i = kBlocks - rule_.size() - partly_filled_; i < more; ++i) rule_.EvictLeaf();
    ledger_.Add(sequence.page, more);
    ledger_.Publish(sequence.page, Ids(text), Size(text));
    for (int32_t end = known + kBlock; end <= Size(text); end += kBlock) {
      rule_.Hold(text.substr(0, end));
    }
    ++partly_filled_;
    running_.push_back(std::move(sequence));
  }

  // What it holds of the end goes first.
  void Release(Sequence& sequence) {
    ledger_.Release(sequence.page);
    if (sequence.text.size() % kBlock != 0) --partly_filled_;
    for (size_t blocks = sequence.text.size() / kBlock; blocks > 0; --blocks) {
      rule_.Release(sequence.text.substr(0, blocks * kBlock));
    }
  }

  void ReleaseAny() {
    if (running_.empty()) return;
    std::swap(running_[random_() % running_.size()], running_.back());
    Release(running_.back());
    running_.pop_back();
  }

  std::mt19937 random_{GetParam()};
  BlockLedger ledger_{{.blocks_total = kBlocks, .block_size = kBlock}};
  Rule rule_;
  int32_t partly_filled_ = 0;  // blocks, each of one sequence
  std::vector<Sequence> running_;
};

TEST_P(LeafLru, IsWhatALedgerEvictsBy) {
  for (int step = 0; step < 2000 && !HasFatalFailure(); ++step) {
    if (running_.size() > 3 || random_() % 2 == 0) {
      ReleaseAny();
    } else {
      Start(RandomText());
    }
    Compare();
  }
  EXPECT_GT(ledger_.evictions(), 100u);
  while (!running_.empty()) ReleaseAny();
  EXPECT_EQ(ledger_.pool().blocks_held(), 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, LeafLru, ::testing::Range(1u, 9u));

// The two halves of the rule where the other one cannot matter.
TEST(Eviction, OfTextsThatShareNothingBeginsWithTheOneUsedLongestAgo) {
  BlockLedger ledger({.blocks_total = 4, .block_size = kBlock});
  const auto use = [&](const std::string& text) {
    SequenceBlocks page;
    ledger.Match(page, Ids(text));
    const int32_t known = ledger.TakeMatch(page);
    ledger.Add(page, 2 - known / kBlock);
    ledger.Publish(page, Ids(text), Size(text));
    ledger.Release(page);
  };
  const auto matched = [&](const std::string& text) {
    SequenceBlocks page;
    ledger.Match(page, Ids(text));
    return page.match.size();
  };
  for (const char* text : {"aaaa.", "bbbb.", "cccc.", "aaaa."}) use(text);
  SequenceBlocks filler;
  ledger.Add(filler, 2);
  EXPECT_EQ(matched("bbbb."), 0u);
  EXPECT_EQ(matched("cccc."), 1u);
  EXPECT_EQ(matched("aaaa."), 1u) << "it was used again";
  ledger.Add(filler, 1);
  EXPECT_EQ(matched("cccc."), 0u);
  EXPECT_EQ(matched("aaaa."), 1u);
  ledger.Add(filler, 1);
  EXPECT_EQ(matched("aaaa."), 0u);
}

// What is freed last is taken first, so the order in which blocks come back tells that in which
// they went.
TEST(Eviction, ASequenceGivesItsBlocksBackFromTheEnd) {
  BlockLedger ledger({.blocks_total = 3, .block_size = kBlock, .prefix_cache = false});
  SequenceBlocks first, second;
  ledger.Add(first, 3);
  const std::vector<BlockId> blocks = first.blocks;
  ledger.Release(first);
  ledger.Add(second, 3);
  EXPECT_EQ(second.blocks, blocks);
}

}  // namespace
}  // namespace rempart::worker
