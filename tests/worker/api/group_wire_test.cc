// SPDX-License-Identifier: Apache-2.0
// A step that has passed from the leader to a follower is the step that it was.
#include "worker/api/group_wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

GroupStep Passed(const GroupStep& step) {
  group::v1::ToFollower sent, received;
  WriteStep(step, &sent);
  EXPECT_TRUE(received.ParseFromString(sent.SerializeAsString()));
  auto read = ReadStep(received);
  EXPECT_TRUE(read.ok()) << read.status();
  return read.ok() ? *std::move(read) : GroupStep{};
}

TEST(GroupWire, AStepArrivesWhole) {
  GroupStep step;
  step.step = 5;
  step.epoch = 3;
  step.copies = {{1, 2}, {2, 7}};
  step.micro_batch_tokens = 64;
  step.slices = {
      {{4, 5, 6}, 16, {9, 8}, false, -1}, {{0}, 31, {3, 1}, true, 0}, {{0}, 7, {2}, true, 12}};
  const GroupStep passed = Passed(step);
  EXPECT_EQ(passed.step, 5);
  EXPECT_EQ(passed.epoch, 3);
  EXPECT_EQ(passed.copies, step.copies);
  EXPECT_EQ(passed.micro_batch_tokens, 64);
  ASSERT_EQ(passed.slices.size(), 3u);
  const int32_t follows[] = {-1, 0, 12};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(passed.slices[i].token_ids, step.slices[i].token_ids);
    EXPECT_EQ(passed.slices[i].first_position, step.slices[i].first_position);
    EXPECT_EQ(passed.slices[i].block_table, step.slices[i].block_table);
    EXPECT_EQ(passed.slices[i].wants_logits, step.slices[i].wants_logits);
    EXPECT_EQ(passed.slices[i].follows, follows[i]);
  }
}

TEST(GroupWire, WhatOneStepFollowsReachesTheModelsBatch) {
  const std::vector<int32_t> ids = {0}, table = {1};
  StepBatch batch;
  batch.slices = {{ids, 4, table, true, nullptr, 2}, {ids, 5, table, true}};
  const GroupStep passed = Passed(OwnedStep(batch, 1, 1));
  const StepBatch read = BatchOf(passed);
  ASSERT_EQ(read.slices.size(), 2u);
  EXPECT_EQ(read.slices[0].follows, 2);
  EXPECT_EQ(read.slices[1].follows, -1);
  EXPECT_THAT(read.slices[0].token_ids, ElementsAre(0));
}

TEST(GroupWire, WhatIsNoStepIsRefusedByField) {
  group::v1::ToFollower message;
  EXPECT_THAT(std::string(ReadStep(message).status().message()), HasSubstr("counts from 1"));
  message.set_step(1);
  message.add_slices()->set_follows(-2);
  EXPECT_EQ(ReadStep(message).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ReadStep(message).status().message()), HasSubstr("slices.follows: -2"));
}

}  // namespace
}  // namespace rempart::worker
