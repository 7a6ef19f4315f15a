// SPDX-License-Identifier: Apache-2.0
#include "worker/group/fabric.h"

#include <gtest/gtest.h>

namespace rempart::worker {
namespace {

TEST(MicrosecondsPerToken, CountsGathersOfLayersAndMessagesOfStages) {
  const FabricFigures figures = {.all_reduce_microseconds = 10, .mib_per_second = 1000};
  EXPECT_EQ(MicrosecondsPerToken({}, {30, 576, 3, 1}), 0) << "one rank has no links";
  EXPECT_EQ(MicrosecondsPerToken(figures, {30, 576, 3, 1}), 610);
  EXPECT_EQ(MicrosecondsPerToken(figures, {30, 576, 1, 3}), 30);
  EXPECT_EQ(MicrosecondsPerToken(figures, {30, 576, 3, 2}), 620);
  // 8192 floats are 28 KiB more than what was measured.
  EXPECT_EQ(MicrosecondsPerToken(figures, {1, 8192, 1, 2}), 2 * (10 + 27));
}

}  // namespace
}  // namespace rempart::worker
