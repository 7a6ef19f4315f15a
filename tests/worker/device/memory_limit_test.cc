// SPDX-License-Identifier: Apache-2.0
#include "worker/device/memory_limit.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

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

  // Of v2: a group with a limit, or "max", and what is used.
  void PutV2(const std::string& group, const std::string& limit, int64_t used_bytes) {
    Put("/sys/fs/cgroup" + group + "/memory.max", limit + "\n");
    Put("/sys/fs/cgroup" + group + "/memory.current", std::to_string(used_bytes) + "\n");
  }
  void PutV1(const std::string& group, int64_t limit_bytes, int64_t used_bytes) {
    const std::string folder = "/sys/fs/cgroup/memory" + group;
    Put(folder + "/memory.limit_in_bytes", std::to_string(limit_bytes) + "\n");
    Put(folder + "/memory.usage_in_bytes", std::to_string(used_bytes) + "\n");
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

// Each group of the path in turn leaves least.
TEST_F(MemoryUseTest, OfNestedGroupsOfV2TheOneThatLeavesLeast) {
  const std::vector<std::string> groups = {"", "/kubepods", "/kubepods/pod1", "/kubepods/pod1/c"};
  Put("/proc/self/cgroup", "0::/kubepods/pod1/c\n");
  for (const std::string& least : groups) {
    for (const std::string& group : groups) {
      PutV2(group, std::to_string((group == least ? 200 : 300) * kMiB), 100 * kMiB);
    }
    const MemoryUse use = ReadMemoryUse(root_);
    EXPECT_EQ(use.limit_bytes, 200 * kMiB) << least;
    EXPECT_EQ(use.left_bytes(), 100 * kMiB) << least;
    EXPECT_EQ(use.limit_of, root_ + "/sys/fs/cgroup" + least + "/memory.max");
  }
  // Others in the group above have used what its larger limit allows.
  PutV2("/kubepods/pod1", std::to_string(300 * kMiB), 290 * kMiB);
  PutV2("/kubepods/other", std::to_string(kMiB), kMiB);
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 10 * kMiB);
  PutV2("/kubepods/pod1", "max", 290 * kMiB);
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 100 * kMiB);
}

TEST_F(MemoryUseTest, OfNestedGroupsOfV1TheOneThatLeavesLeast) {
  const std::vector<std::string> groups = {"", "/kubepods", "/kubepods/pod1", "/kubepods/pod1/c"};
  Put("/proc/self/cgroup", "9:cpu,cpuacct:/\n8:memory:/kubepods/pod1/c\n1:name=systemd:/x\n");
  for (const std::string& least : groups) {
    for (const std::string& group : groups) {
      PutV1(group, (group == least ? 200 : 300) * kMiB, 100 * kMiB);
    }
    const MemoryUse use = ReadMemoryUse(root_);
    EXPECT_EQ(use.limit_bytes, 200 * kMiB) << least;
    EXPECT_EQ(use.limit_of, root_ + "/sys/fs/cgroup/memory" + least + "/memory.limit_in_bytes");
  }
}

// Both versions are mounted; memory is with the first.
TEST_F(MemoryUseTest, OfAHybridOfBothVersions) {
  Put("/proc/self/cgroup", "8:memory:/pod\n0::/pod\n");
  PutV1("/pod", 300 * kMiB, 200 * kMiB);
  Put("/sys/fs/cgroup/unified/pod/cgroup.procs", "1\n");
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 100 * kMiB);
}

// A limit of the pod, of which a container sees its own group alone.
TEST_F(MemoryUseTest, V1InsideAContainerWhosePodHasALimit) {
  Put("/proc/self/cgroup", "8:memory:/kubepods/pod1/c\n");
  PutV1("", INT64_MAX / 4096 * 4096, 150 * kMiB);
  Put("/sys/fs/cgroup/memory/memory.stat",
      "hierarchical_memory_limit 262144000\ntotal_inactive_file 104857600\n");
  const MemoryUse use = ReadMemoryUse(root_);
  EXPECT_EQ(use.limit_bytes, 250 * kMiB);
  EXPECT_EQ(use.used_bytes, 50 * kMiB);
  EXPECT_EQ(use.limit_of, root_ + "/sys/fs/cgroup/memory/memory.stat");
  EXPECT_FALSE(use.is_of_machine());
  Put("/sys/fs/cgroup/memory/memory.stat", "hierarchical_memory_limit 9223372036854771712\n");
  EXPECT_TRUE(ReadMemoryUse(root_).is_of_machine());
}

// From within another namespace the path begins above the mount.
TEST_F(MemoryUseTest, V2OfAGroupBesideTheNamespace) {
  Put("/proc/self/cgroup", "0::/../../pod2\n");
  PutV2("", std::to_string(100 * kMiB), 50 * kMiB);
  EXPECT_EQ(ReadMemoryUse(root_).left_bytes(), 50 * kMiB);
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
