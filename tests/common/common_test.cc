// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace rempart {
namespace {

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  ASSIGN_OR_RETURN(int half, Half(value));
  ASSIGN_OR_RETURN(int quarter, Half(half));
  return quarter;
}

TEST(StatusMacros, AssignOrReturnPassesValueAndError) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status(), absl::InvalidArgumentError("odd"));
}

TEST(Check, FailureShowsBothValues) { EXPECT_DEATH(CHECK_EQ(1 + 1, 3), "2 vs 3"); }

TEST(Check, StreamsAreEvaluatedOnlyOnFailure) {
  int evaluations = 0;
  CHECK(true) << ++evaluations;
  EXPECT_EQ(evaluations, 0);
}

TEST(SteadyNow, GrowsAndStartsAtTheTimeOfDay) {
  const absl::Time first = SteadyNow();
  EXPECT_LT(absl::AbsDuration(absl::Now() - first), absl::Minutes(1));
  EXPECT_GE(SteadyNow(), first);
  const SystemClock clock;
  EXPECT_GE(clock.Now(), first);
  EXPECT_LT(absl::AbsDuration(clock.WallNow() - absl::Now()), absl::Minutes(1));
}

TEST(Mutex, WaitsUntilTheConditionHoldsOrTheTimeIsOver) {
  Mutex mu;
  bool done = false;
  mu.Lock();
  EXPECT_FALSE(mu.AwaitWithTimeout(absl::Condition(&done), absl::Milliseconds(1)));
  EXPECT_FALSE(mu.AwaitWithDeadline(absl::Condition(&done), absl::InfinitePast()));
  std::jthread other([&] {
    MutexLock lock(&mu);
    done = true;
  });
  EXPECT_TRUE(mu.AwaitWithDeadline(absl::Condition(&done), absl::InfiniteFuture()));
  mu.Unlock();
}

TEST(ManualClock, MovesOnlyWhenTold) {
  ManualClock clock;
  const absl::Time before = clock.Now();
  clock.Advance(absl::Seconds(3));
  EXPECT_EQ(clock.Now() - before, absl::Seconds(3));
}

}  // namespace
}  // namespace rempart
