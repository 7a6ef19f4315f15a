// SPDX-License-Identifier: Apache-2.0
#include "worker/device/memory_limit.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;

class MemoryUseTest : public testing::Test {
 protected:
  MemoryUseTest() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    root_ = testing::TempDir() + "memory_limit_" + test->name();
    std::filesystem::remove_all(root_);
    Put("/proc/meminfo", "MemTotal:  1024000 kB\nMemFree: 1 kB\nMemAvailable:  512000 kB\n");
  }
  ~MemoryUseTest() override { std::filesystem::remove_all(root_); }

  void Put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

TEST_F(MemoryUseTest, WithoutCgroupItIsTheMachine) {
  const MemoryUse use = ReadMemoryUse(root_);
  EXPECT_EQ(use.limit_bytes, 1000 * kMiB);
  EXPECT_EQ(use.left_bytes(), 500 * kMiB);
}

TEST_F(MemoryUseTest, V2WithoutThePagesOfFiles) {
  Put("/proc/self/cgroup", "0::/pod/container\n");
  Put("/sys/fs/cgroup/pod/memory.max", "419430400\n");
  Put("/sys/fs/cgroup/pod/memory.current", "398458880\n");
  Put("/sys/fs/cgroup/pod/memory.stat",
      "anon 1\nfile 2\ninactive_file 104857600\nactive_file 209715200\n");
  Put("/sys/fs/cgroup/pod/container/memory.max", "max\n");
  Put("/sys/fs/cgroup/pod/container/memory.current", "398458880\n");
  const MemoryUse use = ReadMemoryUse(root_);
  EXPECT_EQ(use.limit_bytes, 400 * kMiB);
  EXPECT_EQ(use.used_bytes, 80 * kMiB);
}

TEST_F(MemoryUseTest, V2InsideAContainerWhosePathIsHidden) {
  Put("/proc/self/cgroup", "0::/kubepods/pod1/abc\n");
  Put("/sys/fs/cgroup/memory.max", "104857600\n");
  Put("/sys/fs/cgroup/memory.current", "52428800\n");
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 50 * kMiB);
}

TEST_F(MemoryUseTest, V1) {
  Put("/proc/self/cgroup", "9:cpu:/\n8:memory:/pod\n");
  Put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
  Put("/sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "209715200\n");
  Put("/sys/fs/cgroup/memory/pod/memory.usage_in_bytes", "157286400\n");
  Put("/sys/fs/cgroup/memory/pod/memory.stat",
      "total_inactive_file 52428800\ntotal_active_file 0\n");
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 100 * kMiB);
}

TEST_F(MemoryUseTest, OfAnUnlimitedCgroupItIsTheMachine) {
  Put("/proc/self/cgroup", "8:memory:/\n");
  Put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 500 * kMiB);
}

TEST(MemoryWatch, SaysTheFiguresAndDoesNotFlap) {
  MemoryWatch watch;
  EXPECT_EQ(watch.Observe({1000 * kMiB, 960 * kMiB}), "");
  EXPECT_EQ(watch.Observe({1000 * kMiB, 970 * kMiB}), "970 of 1000 MiB are in use");
  EXPECT_EQ(watch.Observe({1000 * kMiB, 960 * kMiB}), "960 of 1000 MiB are in use");
  EXPECT_EQ(watch.Observe({1000 * kMiB, 950 * kMiB}), "");
}

}  // namespace
}  // namespace rempart::worker
