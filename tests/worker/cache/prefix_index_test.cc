// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/prefix_index.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace rempart::worker {
namespace {

using Tokens = std::vector<int32_t>;

const PrefixKey kSalt = SaltKey("tenant");

TEST(PrefixKey, NamesAllTokensFromTheStartAndTheSalt) {
  const Tokens a = {1, 2, 3, 4}, b = {5, 6, 7, 8};
  std::set<std::pair<uint64_t, uint64_t>> keys;
  const auto add = [&](const PrefixKey& key) { return keys.insert({key.high, key.low}).second; };
  EXPECT_TRUE(add(kSalt));
  EXPECT_TRUE(add(NextKey(kSalt, a)));
  EXPECT_TRUE(add(NextKey(kSalt, b)));
  EXPECT_TRUE(add(NextKey(NextKey(kSalt, a), b)));
  EXPECT_TRUE(add(NextKey(NextKey(kSalt, b), b))) << "what came before counts";
  EXPECT_TRUE(add(NextKey(SaltKey("other"), a)));
  EXPECT_TRUE(add(SaltKey(""))) << "no salt is one as well";
  EXPECT_EQ(NextKey(kSalt, a), NextKey(SaltKey("tenant"), Tokens{1, 2, 3, 4}));
}

TEST(PrefixIndex, FindsOnlyTheSameTokensAfterTheSameParent) {
  PrefixIndex index(8, 2);
  const Tokens a = {1, 2}, b = {3, 4};
  const PrefixKey key = NextKey(kSalt, a);
  ASSERT_TRUE(index.Insert(key, kNoBlock, a, 5));
  EXPECT_EQ(index.Find(key, kNoBlock, a), 5);
  EXPECT_EQ(index.Find(NextKey(kSalt, b), kNoBlock, b), kNoBlock);
  // As if the hashes of two texts were equal.
  EXPECT_EQ(index.Find(key, kNoBlock, b), kNoBlock) << "other tokens";
  EXPECT_EQ(index.Find(key, 3, a), kNoBlock) << "another parent";
  EXPECT_FALSE(index.Insert(key, kNoBlock, b, 6)) << "the key is taken";
  EXPECT_EQ(index.size(), 1);
}

TEST(PrefixIndex, ARegistrationIsNeverUsedAgain) {
  PrefixIndex index(8, 2);
  const Tokens a = {1, 2};
  ASSERT_TRUE(index.Insert(NextKey(kSalt, a), kNoBlock, a, 5));
  const uint64_t first = index.registration(5);
  index.Remove(5);
  EXPECT_EQ(index.registration(5), 0u);
  ASSERT_TRUE(index.Insert(NextKey(kSalt, a), kNoBlock, a, 5));
  EXPECT_NE(index.registration(5), first);
}

TEST(PrefixIndex, AParentStaysWhileItHasChildren) {
  PrefixIndex index(8, 2);
  const Tokens a = {1, 2}, b = {3, 4};
  const PrefixKey first = NextKey(kSalt, a);
  ASSERT_TRUE(index.Insert(first, kNoBlock, a, 0));
  ASSERT_TRUE(index.Insert(NextKey(first, b), 0, b, 1));
  EXPECT_FALSE(index.IsLeaf(0));
  EXPECT_DEATH(index.Remove(0), "before its children");
  index.Remove(1);
  EXPECT_TRUE(index.IsLeaf(0));
  index.Remove(0);
  EXPECT_EQ(index.size(), 0);
}

}  // namespace
}  // namespace rempart::worker
