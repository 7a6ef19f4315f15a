// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/block_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace rempart::worker {
namespace {

TEST(BlockPool, TakesAllOrNothing) {
  BlockPool pool(4);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(3, held));
  EXPECT_FALSE(pool.Allocate(2, held));
  EXPECT_EQ(held.size(), 3u);
  EXPECT_EQ(pool.blocks_free(), 1);
}

TEST(BlockPool, HandsOutEachBlockOnce) {
  BlockPool pool(64);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(64, held));
  EXPECT_EQ(std::set<BlockId>(held.begin(), held.end()).size(), 64u);
}

TEST(BlockPool, ASharedBlockIsFreeAfterItsLastHolder) {
  BlockPool pool(1);
  std::vector<BlockId> held;
  ASSERT_TRUE(pool.Allocate(1, held));
  pool.Retain(held[0]);
  pool.Release(held[0]);
  EXPECT_EQ(pool.blocks_free(), 0);
  pool.Release(held[0]);
  EXPECT_EQ(pool.blocks_free(), 1);
}

TEST(BlockPool, ReleasingAFreeBlockIsAProgrammingError) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.Release(0), "references_");
}

}  // namespace
}  // namespace rempart::worker
