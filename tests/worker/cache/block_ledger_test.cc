// SPDX-License-Identifier: Apache-2.0
// Blocks hold four tokens. A text is written as letters, one per token.
#include "worker/cache/block_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Ids(const std::string& text) { return {text.begin(), text.end()}; }

class Ledger : public ::testing::Test {
 protected:
  // A sequence that has computed all of `text`.
  SequenceBlocks Computed(const std::string& text) {
    SequenceBlocks page = Waiting();
    const int32_t known = static_cast<int32_t>(text.size());
    ledger_.Add(page, (known + 3) / 4);
    ledger_.Publish(page, Ids(text), known);
    return page;
  }
  SequenceBlocks Waiting() {
    SequenceBlocks page;
    page.salt = SaltKey("tenant");
    return page;
  }
  size_t Matched(const std::string& text) {
    SequenceBlocks page = Waiting();
    ledger_.Match(page, Ids(text));
    return page.match.size();
  }

  BlockLedger ledger_{{.blocks_total = 8, .block_size = 4}};
};

TEST_F(Ledger, MatchesFullBlocksOfAllTokensButTheLast) {
  SequenceBlocks page = Computed("aaaabbbbcc");
  EXPECT_EQ(Matched("aaaabbbbccc"), 2u) << "a partly filled block is nobody else's";
  EXPECT_EQ(Matched("aaaabbbb"), 1u) << "the last token is left to compute";
  EXPECT_EQ(Matched("aaaaxxxxcccc"), 1u);
  EXPECT_EQ(Matched("xaaabbbb"), 0u);
  ledger_.Release(page);
  EXPECT_EQ(Matched("aaaabbbbccc"), 2u) << "cached after its holder has gone";
  EXPECT_EQ(ledger_.pool().blocks_held(), 0);
}

TEST_F(Ledger, HoldsWhatItTakesFromTheCache) {
  SequenceBlocks first = Computed("aaaabbbb");
  const std::vector<BlockId> blocks = first.blocks;
  ledger_.Release(first);
  SequenceBlocks second = Waiting();
  ledger_.Match(second, Ids("aaaabbbbc"));
  EXPECT_EQ(ledger_.TakeMatch(second), 8);
  EXPECT_EQ(second.blocks, blocks);
  SequenceBlocks filler = Waiting();
  ledger_.Add(filler, 6);
  EXPECT_EQ(ledger_.pool().blocks_available(), 0) << "what is held cannot be evicted";
  EXPECT_EQ(ledger_.evictions(), 0u);
}

TEST_F(Ledger, EvictsLeavesFirstAndAMatchNotices) {
  SequenceBlocks first = Computed("aaaabbbbcccc");
  ledger_.Release(first);
  SequenceBlocks waiting = Waiting();
  ledger_.Match(waiting, Ids("aaaabbbbccccd"));
  EXPECT_EQ(waiting.match.size(), 3u);
  SequenceBlocks filler = Waiting();
  ledger_.Add(filler, 6);  // five fresh ones and one of the cache
  EXPECT_EQ(ledger_.evictions(), 1u);
  ledger_.Match(waiting, Ids("aaaabbbbccccd"));
  EXPECT_EQ(waiting.match.size(), 2u) << "the end of the chain has gone, its start has not";
}

// Two ends of one beginning, of which the first was used again, and a text of its own:
//   aaaa - bbbb    used first, and again
//        \ cccc
//   dddd
TEST_F(Ledger, EvictsLeavesInTheOrderOfTheirLastUse) {
  for (const char* text : {"aaaabbbb", "aaaacccc", "dddd", "aaaabbbb"}) {
    SequenceBlocks page = Waiting();
    ledger_.Match(page, Ids(std::string(text) + "."));
    const int32_t known = ledger_.TakeMatch(page);
    ledger_.Add(page, static_cast<int32_t>(std::string(text).size() + 1 - known + 3) / 4);
    ledger_.Publish(page, Ids(std::string(text) + "."),
                    static_cast<int32_t>(std::string(text).size() + 1));
    ledger_.Release(page);
  }
  EXPECT_EQ(ledger_.pool().blocks_cached(), 4);
  SequenceBlocks filler = Waiting();
  ledger_.Add(filler, 4);
  EXPECT_EQ(ledger_.evictions(), 0u) << "blocks without content come first";
  const auto left = [&] {
    return std::vector<size_t>{Matched("aaaabbbb."), Matched("aaaacccc."), Matched("dddd.")};
  };
  EXPECT_THAT(left(), ElementsAre(2, 2, 1));
  ledger_.Add(filler, 1);
  EXPECT_THAT(left(), ElementsAre(2, 1, 1)) << "the leaf used longest ago, not what it follows";
  ledger_.Add(filler, 1);
  EXPECT_THAT(left(), ElementsAre(2, 1, 0));
  ledger_.Add(filler, 1);
  EXPECT_THAT(left(), ElementsAre(1, 1, 0)) << "a beginning after all that follow it";
  ledger_.Add(filler, 1);
  EXPECT_THAT(left(), ElementsAre(0, 0, 0));
  EXPECT_EQ(ledger_.evictions(), 4u);
}

TEST_F(Ledger, AMatchNoticesThatABlockHasOtherTokensNow) {
  SequenceBlocks first = Computed("aaaa");
  ledger_.Release(first);
  SequenceBlocks waiting = Waiting();
  ledger_.Match(waiting, Ids("aaaab"));
  SequenceBlocks all = Computed("ddddeeeeffffgggghhhhiiiijjjjkkkk");
  ledger_.Release(all);
  ledger_.Match(waiting, Ids("aaaab"));
  EXPECT_TRUE(waiting.match.empty());
}

TEST_F(Ledger, EqualBlocksBecomeOne) {
  SequenceBlocks first = Computed("aaaabbbb");
  SequenceBlocks second = Computed("aaaabbbbc");
  EXPECT_EQ(second.blocks[0], first.blocks[0]);
  EXPECT_EQ(second.blocks[1], first.blocks[1]);
  EXPECT_EQ(ledger_.pool().blocks_held(), 3);
  EXPECT_EQ(ledger_.pool().references(first.blocks[0]), 2);
}

TEST_F(Ledger, EqualBlocksOfOtherSaltsStayApart) {
  SequenceBlocks first = Computed("aaaabbbb");
  SequenceBlocks other;
  other.salt = SaltKey("another tenant");
  ledger_.Match(other, Ids("aaaabbbbc"));
  EXPECT_TRUE(other.match.empty());
  ledger_.Add(other, 2);
  EXPECT_EQ(ledger_.CatchUp(other, Ids("aaaabbbbc"), 0), 0);
  ledger_.Publish(other, Ids("aaaabbbbc"), 8);
  EXPECT_NE(other.blocks[0], first.blocks[0]);
  EXPECT_EQ(ledger_.pool().blocks_held(), 4);
}

TEST_F(Ledger, CatchesUpWithWhatOthersHaveFilled) {
  SequenceBlocks behind = Waiting();
  const std::vector<int32_t> text = Ids("aaaabbbbccccd");
  ledger_.Add(behind, 4);
  ledger_.Publish(behind, text, 2);  // two tokens of the first block
  EXPECT_EQ(ledger_.CatchUp(behind, text, 2), 2);
  SequenceBlocks ahead = Computed("aaaabbbb");
  EXPECT_EQ(ledger_.CatchUp(behind, text, 2), 8);
  EXPECT_EQ(behind.blocks[0], ahead.blocks[0]);
  EXPECT_EQ(behind.blocks[1], ahead.blocks[1]);
  EXPECT_EQ(ledger_.pool().blocks_held(), 4) << "its own first two are free again";
}

TEST_F(Ledger, LabelsSayWhoWouldFillTheSameBlock) {
  SequenceBlocks a = Waiting(), b = Waiting();
  const auto label = [&](SequenceBlocks& page, const std::string& text, int32_t computed) {
    return ledger_.NextBlockLabel(page, Ids(text), computed);
  };
  EXPECT_NE(label(a, "aaaabbbbc", 0), 0u);
  EXPECT_EQ(label(a, "aaaabbbbc", 0), label(b, "aaaaxxxxc", 0));
  EXPECT_NE(label(a, "aaaabbbbc", 4), label(b, "aaaaxxxxc", 4));
  EXPECT_EQ(label(a, "aaaabbbbc", 8), 0u) << "the last block is not full";
  SequenceBlocks other;
  other.salt = SaltKey("other");
  EXPECT_NE(label(other, "aaaabbbbc", 0), label(a, "aaaabbbbc", 0));
}

//   leader: [ 0: aaaa | 1: bb  ]      fork: [ 0 | copy of 1 ]
TEST_F(Ledger, AForkSharesFullBlocksAndCopiesThePartlyFilledOne) {
  SequenceBlocks leader = Computed("aaaabb");
  SequenceBlocks fork = Waiting();
  ledger_.Fork(leader, fork, 6);
  EXPECT_THAT(fork.blocks, ElementsAre(leader.blocks[0]));
  EXPECT_EQ(fork.copy_source, leader.blocks[1]);
  ledger_.SettleFork(fork);
  EXPECT_EQ(fork.copy_source, leader.blocks[1]) << "the leader holds it too";
  EXPECT_EQ(ledger_.Add(fork, 1), leader.blocks[1]);
  EXPECT_NE(fork.blocks[1], leader.blocks[1]);
  EXPECT_EQ(ledger_.pool().references(leader.blocks[1]), 1);
  ledger_.Release(leader);
  ledger_.Release(fork);
  EXPECT_EQ(ledger_.pool().blocks_held(), 0);
}

TEST_F(Ledger, AForkThatIsLeftAloneTakesTheBlockOver) {
  SequenceBlocks leader = Computed("aaaabb");
  SequenceBlocks fork = Waiting();
  ledger_.Fork(leader, fork, 6);
  const BlockId source = leader.blocks[1];
  // The leader fills the block, which is then in the cache, and ends.
  ledger_.Publish(leader, Ids("aaaabbcc"), 8);
  ledger_.Release(leader);
  ledger_.SettleFork(fork);
  EXPECT_EQ(fork.copy_source, kNoBlock);
  EXPECT_EQ(fork.blocks[1], source);
  EXPECT_EQ(Matched("aaaabbccd"), 1u) << "it will be overwritten, so the cache has given it up";
  ledger_.Publish(fork, Ids("aaaabbxx"), 8);
  EXPECT_EQ(Matched("aaaabbxxd"), 2u);
}

TEST_F(Ledger, AForkLeavesABlockThatOthersInTheCacheFollow) {
  SequenceBlocks leader = Computed("aaaabb");
  SequenceBlocks fork = Waiting();
  ledger_.Fork(leader, fork, 6);
  ledger_.Add(leader, 1);
  ledger_.Publish(leader, Ids("aaaabbccdddd"), 12);
  ledger_.Release(leader);
  ledger_.SettleFork(fork);
  EXPECT_NE(fork.copy_source, kNoBlock);
  EXPECT_EQ(Matched("aaaabbccdddde"), 3u);
}

TEST(LedgerWithoutCache, SharesNothingButForks) {
  BlockLedger ledger({.blocks_total = 8, .block_size = 4, .prefix_cache = false});
  SequenceBlocks leader;
  const std::vector<int32_t> text = Ids("aaaabb");
  ledger.Add(leader, 2);
  ledger.Publish(leader, text, 6);
  SequenceBlocks other;
  ledger.Match(other, text);
  EXPECT_TRUE(other.match.empty());
  EXPECT_EQ(ledger.NextBlockLabel(other, text, 0), 0u);
  SequenceBlocks fork;
  ledger.Fork(leader, fork, 6);
  EXPECT_EQ(ledger.pool().blocks_held(), 2);
  ledger.Release(leader);
  ledger.Release(fork);
  EXPECT_EQ(ledger.pool().blocks_cached(), 0);
  EXPECT_EQ(ledger.pool().blocks_available(), 8);
}

}  // namespace
}  // namespace rempart::worker
