// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;

TEST(BlockPool, TakesAllOrNothing) {
  BlockPool pool(4);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(3, held));
  EXPECT_FALSE(pool.Allocate(2, held));
  EXPECT_EQ(held.size(), 3u);
  EXPECT_EQ(pool.blocks_available(), 1);
}

TEST(BlockPool, HandsOutEachBlockOnce) {
  BlockPool pool(64);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(64, held));
  EXPECT_EQ(std::set<BlockId>(held.begin(), held.end()).size(), 64u);
  EXPECT_EQ(pool.blocks_held(), 64);
}

TEST(BlockPool, ASharedBlockIsFreeAfterItsLastHolder) {
  BlockPool pool(1);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(1, held));
  pool.Retain(held[0]);
  pool.Release(held[0]);
  EXPECT_EQ(pool.blocks_available(), 0);
  pool.Release(held[0]);
  EXPECT_EQ(pool.blocks_available(), 1);
}

TEST(BlockPool, EvictsWhatWasReleasedLongestAgoAndOnlyWhenItMust) {
  std::vector<BlockId> evicted;
  BlockPool pool(5, [&](BlockId block) { evicted.push_back(block); });
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(4, held));
  for (const BlockId block : {1, 2, 0}) pool.Keep(block);
  for (const BlockId block : {2, 0, 1, 3}) pool.Release(block);
  EXPECT_EQ(pool.blocks_cached(), 3);
  EXPECT_EQ(pool.blocks_available(), 5);
  pool.Retain(2);  // used again, so the youngest afterwards
  pool.Release(2);
  held.clear();
  ASSERT_TRUE(pool.Allocate(2, held));
  EXPECT_THAT(held, ElementsAre(3, 4)) << "first the free one, then the fresh one";
  EXPECT_TRUE(evicted.empty());
  ASSERT_TRUE(pool.Allocate(3, held));
  EXPECT_THAT(evicted, ElementsAre(0, 1, 2));
  EXPECT_FALSE(pool.Allocate(1, held));
}

TEST(BlockPool, HeldBackFreshBlocksAreNotAvailable) {
  BlockPool pool(4);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(2, held));
  pool.Keep(0);
  pool.Release(0);
  pool.HoldBackFresh();
  EXPECT_EQ(pool.blocks_available(), 1);
  held.clear();
  ASSERT_TRUE(pool.Allocate(1, held));
  EXPECT_THAT(held, ElementsAre(0)) << "the cache gives way";
  EXPECT_FALSE(pool.Allocate(1, held));
  pool.GiveOutFresh();
  EXPECT_TRUE(pool.Allocate(2, held));
}

TEST(BlockPool, ReleasingAFreeBlockIsAProgrammingError) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.Release(0), "references_");
  EXPECT_DEATH(pool.Retain(0), "is free");
}

}  // namespace
}  // namespace rempart::worker
