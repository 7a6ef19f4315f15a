// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/stop_conditions.h"

#include <gtest/gtest.h>

namespace rempart::worker {
namespace {

// The parts that come out, separated by '|', then the flush after '/'.
std::string Stream(std::vector<std::string> stop, const std::vector<std::string>& parts) {
  TextStream stream(std::move(stop));
  std::string out;
  for (const std::string& part : parts) out += stream.Append(part) + "|";
  return out + "/" + stream.Flush();
}

TEST(TextStream, PassesTextThrough) { EXPECT_EQ(Stream({}, {"a", "bc"}), "a|bc|/"); }

TEST(TextStream, NeverSendsHalfACharacter) {
  EXPECT_EQ(Stream({}, {"\xe2\x82", "\xac!"}), "|\xe2\x82\xac!|/");
  EXPECT_EQ(Stream({}, {"\xf0\x9f", "\x98", "\x80"}), "||\xf0\x9f\x98\x80|/");
}

TEST(TextStream, ReplacesBytesThatAreNoCharacter) {
  EXPECT_EQ(Stream({}, {"a\xffz"}), "a\xef\xbf\xbdz|/");
  EXPECT_EQ(Stream({}, {"\xe2\x82", "z"}), "|\xef\xbf\xbdz|/");
  EXPECT_EQ(Stream({}, {"a", "\xe2\x82"}), "a||/\xef\xbf\xbd");
  EXPECT_EQ(Stream({}, {"\xed\xa0\x80"}), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|/") << "surrogate";
}

TEST(TextStream, HoldsBackWhatMayBecomeAStop) {
  EXPECT_EQ(Stream({"END"}, {"x E", "N", "x"}), "x ||ENx|/");
  EXPECT_EQ(Stream({"END"}, {"x E", "N"}), "x ||/EN");
}

TEST(TextStream, CutsAtAStopAcrossTokens) {
  EXPECT_EQ(Stream({"END"}, {"x E", "ND tail", "more"}), "x |||/");
  EXPECT_EQ(Stream({"\n\n"}, {"a\n", "\n", "b"}), "a|||/");
}

TEST(TextStream, TheEarliestOfSeveralStopsWins) {
  TextStream stream({"later", "soon"});
  EXPECT_EQ(stream.Append("x soon later"), "x ");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.matched_stop(), "soon");
}

TEST(TextStream, AStopMayOverlapItself) {
  EXPECT_EQ(Stream({"aab"}, {"a", "a", "a", "b"}), "||a||/");
}

}  // namespace
}  // namespace rempart::worker
