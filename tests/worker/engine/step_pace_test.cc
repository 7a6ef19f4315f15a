// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/step_pace.h"

#include <gtest/gtest.h>

namespace rempart::worker {
namespace {

constexpr absl::Duration kMs = absl::Milliseconds(1);

TEST(StepPace, FillsWhatTheDecodesLeaveOfTheBound) {
  StepPace pace(100 * kMs);
  pace.Observe(4, 0, 20 * kMs);
  pace.Observe(0, 500, 1000 * kMs);  // 2 ms each
  EXPECT_EQ(pace.PrefillTokensBesideDecodes(512), 40);
  EXPECT_DOUBLE_EQ(pace.prefill_tokens_per_second(), 500);
}

TEST(StepPace, ASlowMachineStillPrefillsAsLongAsItDecodes) {
  StepPace pace(100 * kMs);
  pace.Observe(4, 0, 300 * kMs);
  pace.Observe(0, 100, 1000 * kMs);  // 10 ms each
  EXPECT_EQ(pace.PrefillTokensBesideDecodes(512), 30);
}

TEST(StepPace, StaysWithinOneBlockAndTheStep) {
  StepPace pace(100 * kMs);
  pace.Observe(0, 10, 10'000 * kMs);
  EXPECT_EQ(pace.PrefillTokensBesideDecodes(512), 16);
  StepPace fast(100 * kMs);
  fast.Observe(0, 1000, kMs);
  EXPECT_EQ(fast.PrefillTokensBesideDecodes(512), 512);
  EXPECT_EQ(fast.PrefillTokensBesideDecodes(8), 8);
}

TEST(StepPace, MixedStepsAreChargedToPrefillLessTheDecodes) {
  StepPace pace(100 * kMs);
  pace.Observe(4, 0, 20 * kMs);
  pace.Observe(4, 40, 100 * kMs);
  EXPECT_EQ(pace.PrefillTokensBesideDecodes(512), 40);
}

TEST(StepPace, FollowsWhatItMeasures) {
  StepPace pace(100 * kMs);
  pace.Observe(0, 100, 100 * kMs);
  for (int i = 0; i < 50; ++i) pace.Observe(0, 100, 400 * kMs);
  EXPECT_NEAR(pace.PrefillTokensBesideDecodes(512), 25, 1);
}

TEST(StepPace, BeforeAnyMeasurementItIsCautiousAndWithoutABoundItIsNot) {
  EXPECT_EQ(StepPace(100 * kMs).PrefillTokensBesideDecodes(512), 64);
  EXPECT_EQ(StepPace(absl::ZeroDuration()).PrefillTokensBesideDecodes(512), 512);
}

}  // namespace
}  // namespace rempart::worker
