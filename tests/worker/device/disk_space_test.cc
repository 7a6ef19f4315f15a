// SPDX-License-Identifier: Apache-2.0
#include "worker/device/disk_space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

DiskSpace Disk(int64_t free_bytes, const std::string& name = "the node's disk") {
  return {.name = name, .size_bytes = 1000, .free_bytes = free_bytes};
}

TEST(DiskWatch, SaysNothingWhileThereIsEnough) {
  DiskWatch watch;
  EXPECT_EQ(watch.Observe({}), "") << "nothing could be read";
  EXPECT_EQ(watch.Observe({Disk(1000), Disk(100)}), "");
  EXPECT_EQ(watch.Observe({DiskSpace{.name = "of no size"}}), "");
}

TEST(DiskWatch, NamesTheFullestDiskAndTheLimitThatItPassed) {
  DiskWatch watch;
  EXPECT_THAT(watch.Observe({Disk(500), Disk(99, "the disk of the node's images")}),
              StartsWith("the disk of the node's images is nearly full: less than 10 % of its "
                         "space is free. Its kubelet ends pods"));
  EXPECT_THAT(watch.Observe({Disk(49)}),
              StartsWith("the node's disk is nearly full: less than 5 %"));
  EXPECT_THAT(watch.Observe({Disk(0)}), HasSubstr("less than 1 %"));
}

TEST(DiskWatch, KeepsItsWordsUntilThereIsClearlyMore) {
  DiskWatch watch;
  const std::string told = watch.Observe({Disk(9)});
  EXPECT_THAT(told, HasSubstr("less than 1 %"));
  EXPECT_EQ(watch.Observe({Disk(11)}), told) << "about the limit";
  EXPECT_THAT(watch.Observe({Disk(12)}), HasSubstr("less than 5 %"));
  EXPECT_THAT(watch.Observe({Disk(110)}), HasSubstr("less than 10 %"));
  EXPECT_EQ(watch.Observe({Disk(120)}), "");
  EXPECT_EQ(watch.Observe({Disk(110)}), "") << "not passed again";
}

TEST(DiskWatch, ADiskMayLackInodesInsteadOfSpace) {
  DiskSpace disk = Disk(900);
  disk.size_inodes = 200;
  disk.free_inodes = 3;
  EXPECT_DOUBLE_EQ(disk.free_share(), 0.015);
  DiskWatch watch;
  EXPECT_THAT(watch.Observe({disk}), HasSubstr("less than 5 % of its inodes is free"));
}

TEST(DiskSpace, IsReadFromTheFileSystem) {
  const auto space = ReadDiskSpace(testing::TempDir(), "here");
  ASSERT_TRUE(space.ok()) << space.status();
  EXPECT_EQ(space->name, "here");
  const auto known = std::filesystem::space(testing::TempDir());
  EXPECT_EQ(space->size_bytes, static_cast<int64_t>(known.capacity));
  EXPECT_GE(space->free_bytes, 0);
  EXPECT_LE(space->free_bytes, space->size_bytes);
  const auto missing = ReadDiskSpace("/no/such/folder", "nowhere");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("/no/such/folder"));
}

TEST(DiskSpace, OfANodeLeavesOutWhatCannotBeRead) {
  EXPECT_EQ(ReadNodeDisks("").size(), 2u);
  EXPECT_EQ(ReadNodeDisks("/no/such/folder").size(), 0u);
}

}  // namespace
}  // namespace rempart::worker
