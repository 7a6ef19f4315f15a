// SPDX-License-Identifier: Apache-2.0
#include "worker/model/decode_graphs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/device/emulated_device.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

struct Graphs {
  explicit Graphs(bool has_peers = false) : graphs(device, has_peers) {}

  // Each start does the work once, however it is queued.
  absl::Status Start(const DecodeShape& shape) {
    const int64_t before = done;
    const absl::Status status = graphs.Start(shape, [&] {
      device.Queue([this] { ++done; });
      return absl::OkStatus();
    });
    EXPECT_EQ(done, before + (status.ok() ? 1 : 0)) << "of " << shape.slices << " slices";
    return status;
  }

  EmulatedDevice device{1 << 20};
  int64_t done = 0;
  DecodeGraphs graphs;
};

TEST(DecodeGraphs, TheSecondOfAShapeIsRecorded) {
  Graphs all;
  for (const DecodeShape& shape : {DecodeShape{1, 1, false, false}, DecodeShape{2, 1, false, false},
                                   DecodeShape{1, 2, false, false}, DecodeShape{1, 1, true, false},
                                   DecodeShape{1, 1, false, true}}) {
    const int64_t graphs = all.device.graphs();
    for (const int64_t recorded : {0, 1, 1, 1}) {
      ASSERT_TRUE(all.Start(shape).ok());
      EXPECT_EQ(all.device.graphs(), graphs + recorded);
    }
  }
  all.graphs.Clear();
  EXPECT_EQ(all.device.graphs_alive(), 0);
}

TEST(DecodeGraphs, TheOneThatWasStartedLongestAgoMakesRoom) {
  Graphs all;
  const auto start_twice = [&](int64_t slices) {
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(all.Start({slices, 1, false, false}).ok());
  };
  for (int64_t slices = 1; slices <= DecodeGraphs::kMost; ++slices) start_twice(slices);
  EXPECT_EQ(all.device.graphs_alive(), DecodeGraphs::kMost);
  ASSERT_TRUE(all.Start({1, 1, false, false}).ok());  // now 2 is the oldest
  start_twice(1000);
  EXPECT_EQ(all.device.graphs_alive(), DecodeGraphs::kMost);
  const int64_t recorded = all.device.graphs();
  ASSERT_TRUE(all.Start({1, 1, false, false}).ok());
  EXPECT_EQ(all.device.graphs(), recorded) << "still there";
  start_twice(2);
  EXPECT_EQ(all.device.graphs(), recorded + 1) << "recorded again";
  EXPECT_EQ(all.device.graphs_alive(), DecodeGraphs::kMost);
}

TEST(DecodeGraphs, WithoutMemoryForOneTheWorkIsDoneAllTheSame) {
  Graphs all;
  const DecodeShape old = {1, 1, false, false};
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(all.Start(old).ok());
  all.device.RefuseGraphs(1);
  for (const int64_t slices : {2, 4}) {
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(all.Start({slices, 1, false, false}).ok());
  }
  EXPECT_EQ(all.device.graphs(), 1) << "nothing is recorded any more";
  ASSERT_TRUE(all.Start(old).ok());
  EXPECT_EQ(all.device.graphs_alive(), 1) << "what was recorded goes on";
  all.graphs.Clear();
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(all.Start(old).ok());
  EXPECT_EQ(all.device.graphs(), 2) << "tried again";
}

TEST(DecodeGraphs, ARankThatCannotRecordWhatItsPeersDoCannotGoOn) {
  Graphs all(/*has_peers=*/true);
  all.device.RefuseGraphs(1);
  ASSERT_TRUE(all.Start({1, 1, false, false}).ok());
  const absl::Status status = all.Start({1, 1, false, false});
  EXPECT_TRUE(IsDeviceUnavailable(status));
  EXPECT_THAT(status.message(), HasSubstr("engine.kvCacheMib"));
}

TEST(DecodeGraphs, AnErrorOfTheWorkIsNoneOfTheRecording) {
  Graphs all;
  const DecodeShape shape = {1, 1, false, false};
  ASSERT_TRUE(all.Start(shape).ok());
  const auto fail = [] { return absl::AbortedError("a rank has gone"); };
  EXPECT_EQ(all.graphs.Start(shape, fail), absl::AbortedError("a rank has gone"));
  EXPECT_EQ(all.device.graphs(), 0);
  ASSERT_TRUE(all.Start(shape).ok());
  EXPECT_EQ(all.device.graphs(), 1);
}

}  // namespace
}  // namespace rempart::worker
