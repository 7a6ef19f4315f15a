// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/work_queue.h"

#include <gtest/gtest.h>

namespace rempart::op {
namespace {

const ObjectKey kA = {"ns", "a"};
const ObjectKey kB = {"ns", "b"};

class WorkQueueTest : public testing::Test {
 protected:
  ManualClock clock_;
  WorkQueue queue_{&clock_};
};

TEST_F(WorkQueueTest, AnEqualKeyWaitsOnce) {
  queue_.Add(kA);
  queue_.Add(kA);
  EXPECT_EQ(queue_.waiting(), 1);
  EXPECT_EQ(queue_.TryTake(), kA);
  EXPECT_EQ(queue_.TryTake(), std::nullopt);
}

TEST_F(WorkQueueTest, OfTwoTimesTheEarlierWins) {
  queue_.Add(kA, absl::Seconds(10));
  queue_.Add(kA, absl::Seconds(2));
  queue_.Add(kA, absl::Seconds(5));
  EXPECT_EQ(queue_.TryTake(), std::nullopt);
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(queue_.TryTake(), kA);
  queue_.Done(kA);
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(queue_.TryTake(), std::nullopt) << "the later times are gone";
}

TEST_F(WorkQueueTest, AKeyIsNeverWithTwoTakersAndComesAgainAfterDone) {
  queue_.Add(kA);
  ASSERT_EQ(queue_.TryTake(), kA);
  queue_.Add(kA);
  EXPECT_EQ(queue_.TryTake(), std::nullopt);
  queue_.Done(kA);
  EXPECT_EQ(queue_.TryTake(), kA);
}

TEST_F(WorkQueueTest, TheLongestDueComesFirst) {
  queue_.Add(kA, absl::Seconds(2));
  queue_.Add(kB, absl::Seconds(1));
  clock_.Advance(absl::Seconds(3));
  EXPECT_EQ(queue_.TryTake(), kB);
  EXPECT_EQ(queue_.TryTake(), kA);
}

TEST_F(WorkQueueTest, WhatIsUrgentGoesFirstButNothingWaitsForEver) {
  queue_.Add(kA);
  clock_.Advance(absl::Seconds(1));
  queue_.AddUrgent(kB);
  EXPECT_EQ(queue_.TryTake(), kB);
  queue_.Done(kB);
  clock_.Advance(WorkQueue::kHeadStart);
  queue_.AddUrgent(kB);
  EXPECT_EQ(queue_.TryTake(), kA);
  EXPECT_EQ(queue_.TryTake(), kB);
}

TEST_F(WorkQueueTest, AKeyThatWaitsBecomesUrgent) {
  queue_.Add(kA);
  queue_.Add(kB);
  queue_.AddUrgent(kB);
  EXPECT_EQ(queue_.waiting(), 2);
  EXPECT_EQ(queue_.TryTake(), kB);
  queue_.AddUrgent(kB);
  EXPECT_EQ(queue_.TryTake(), kA) << "it is taken";
  queue_.Done(kB);
  EXPECT_EQ(queue_.TryTake(), kB);
}

TEST_F(WorkQueueTest, WhoTakesOnlyWhatIsUrgentLeavesTheRest) {
  queue_.Add(kA);
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt);
  queue_.AddUrgent(kB);
  EXPECT_EQ(queue_.TryTakeUrgent(), kB);
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt);
  EXPECT_EQ(queue_.TryTake(), kA);
  EXPECT_EQ(queue_.TryTake(), std::nullopt) << "an urgent key waits once, as any other";
}

TEST_F(WorkQueueTest, AKeyIsUrgentUntilItIsTaken) {
  queue_.Add(kA, absl::Seconds(5));
  queue_.AddUrgent(kA);
  clock_.Advance(absl::Seconds(1));
  queue_.AddUrgent(kA);
  queue_.Add(kA, absl::Seconds(5));
  ASSERT_EQ(queue_.TryTake(), kA) << "any taker may have it";
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt);
  queue_.AddUrgent(kA);
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt) << "it is taken";
  queue_.Done(kA);
  ASSERT_EQ(queue_.TryTakeUrgent(), kA);
  queue_.Add(kA);
  queue_.Done(kA);
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt) << "what came since was not urgent";
  EXPECT_EQ(queue_.TryTake(), kA);
}

TEST_F(WorkQueueTest, ChangesThatGoOnForEverDoNotPutAKeyOff) {
  int taken = 0;
  for (int i = 0; i < 100; ++i) {
    queue_.Add(kA, absl::Milliseconds(200));
    clock_.Advance(absl::Milliseconds(20));
    if (queue_.TryTake() != kA) continue;
    ++taken;
    queue_.Done(kA);
  }
  EXPECT_EQ(taken, 10) << "in two seconds";
}

// A server that fails often while objects come into being: every one of them brings the key again.
TEST_F(WorkQueueTest, FailuresBeforeTheirTimeCountAsOne) {
  queue_.Retry(kA);
  for (int i = 0; i < 20; ++i) {
    queue_.Add(kA);
    ASSERT_EQ(queue_.TryTake(), kA);
    queue_.Retry(kA);
    queue_.Done(kA);
  }
  EXPECT_EQ(queue_.failures(kA), 1);
  EXPECT_FALSE(queue_.TryTake().has_value());
  clock_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(queue_.TryTake(), kA);
  queue_.Retry(kA);
  EXPECT_EQ(queue_.failures(kA), 2);
}

TEST_F(WorkQueueTest, RetriesWaitLongerEachTimeUntilForgotten) {
  absl::Duration before = absl::ZeroDuration();
  for (int i = 0; i < 8; ++i) {
    queue_.Retry(kA);
    absl::Duration waited = absl::ZeroDuration();
    std::optional<ObjectKey> key;
    while (!(key = queue_.TryTake()).has_value()) {
      clock_.Advance(absl::Milliseconds(10));
      waited += absl::Milliseconds(10);
      ASSERT_LT(waited, absl::Minutes(3));
    }
    EXPECT_GT(waited, before);
    before = waited;
    queue_.Done(kA);
  }
  EXPECT_EQ(queue_.failures(kA), 8);
  queue_.Forget(kA);
  EXPECT_EQ(queue_.failures(kA), 0);
}

TEST_F(WorkQueueTest, AStopEndsTheWait) {
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(queue_.Take(stop.get_token()), std::nullopt);
}

}  // namespace
}  // namespace rempart::op
