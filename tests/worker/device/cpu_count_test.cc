// SPDX-License-Identifier: Apache-2.0
#include "worker/device/cpu_count.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace rempart::worker {
namespace {

class CgroupCpuQuotaTest : public testing::Test {
 protected:
  CgroupCpuQuotaTest() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    root_ = testing::TempDir() + "cpu_count_" + test->name();
    std::filesystem::remove_all(root_);
  }
  ~CgroupCpuQuotaTest() override { std::filesystem::remove_all(root_); }

  void Put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

TEST_F(CgroupCpuQuotaTest, NoneWithoutFiles) { EXPECT_EQ(CgroupCpuQuota(root_), std::nullopt); }

TEST_F(CgroupCpuQuotaTest, V2SmallestOfTheAncestors) {
  Put("/proc/self/cgroup", "0::/pod/container\n");
  Put("/sys/fs/cgroup/pod/container/cpu.max", "max 100000\n");
  Put("/sys/fs/cgroup/pod/cpu.max", "250000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), 2.5);
}

TEST_F(CgroupCpuQuotaTest, V2InsideAContainerWhosePathIsHidden) {
  Put("/proc/self/cgroup", "0::/../../kubepods/x\n");
  Put("/sys/fs/cgroup/cpu.max", "150000 50000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), 3.0);
}

TEST_F(CgroupCpuQuotaTest, V1WithJointControllers) {
  Put("/proc/self/cgroup", "5:memory:/other\n4:cpu,cpuacct:/pod\n");
  Put("/sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us", "400000\n");
  Put("/sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), 4.0);
}

TEST_F(CgroupCpuQuotaTest, V1WithoutAQuota) {
  Put("/proc/self/cgroup", "4:cpu:/pod\n");
  Put("/sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "-1\n");
  Put("/sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), std::nullopt);
}

TEST_F(CgroupCpuQuotaTest, V1SmallestOfTheAncestors) {
  Put("/proc/self/cgroup", "4:cpu,cpuacct:/pod/container\n1:name=systemd:/pod\n");
  Put("/sys/fs/cgroup/cpu/pod/container/cpu.cfs_quota_us", "400000\n");
  Put("/sys/fs/cgroup/cpu/pod/container/cpu.cfs_period_us", "100000\n");
  Put("/sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "75000\n");
  Put("/sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "50000\n");
  Put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), 1.5);
}

TEST_F(CgroupCpuQuotaTest, V1InsideAContainerWhosePathIsHidden) {
  Put("/proc/self/cgroup", "4:cpu,cpuacct:/kubepods/burstable/pod1/x\n");
  Put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
  Put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), 0.5);
}

// Another controller's quota files do not count, whatever they are called.
TEST_F(CgroupCpuQuotaTest, V1OfTheCpuControllerAlone) {
  Put("/proc/self/cgroup", "3:cpuset:/pod\n");
  Put("/sys/fs/cgroup/cpuset/pod/cpu.cfs_quota_us", "100000\n");
  Put("/sys/fs/cgroup/cpuset/pod/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), std::nullopt);
}

// Both are mounted, and the quota is that of the one which has the controller.
TEST_F(CgroupCpuQuotaTest, OfV1BesideV2) {
  Put("/proc/self/cgroup", "4:cpu:/pod\n0::/pod\n");
  Put("/sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "300000\n");
  Put("/sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota(root_), 3.0);
}

TEST_F(CgroupCpuQuotaTest, TakesNothingFromAFileThatItDoesNotUnderstand) {
  Put("/proc/self/cgroup", "0::/pod\n");
  for (const char* text : {"", "all of them\n", "100000\n", "100000 0\n", "-5 100000\n"}) {
    Put("/sys/fs/cgroup/pod/cpu.max", text);
    EXPECT_EQ(CgroupCpuQuota(root_), std::nullopt) << text;
  }
}

TEST(UsableCpuCount, IsAtLeastOne) { EXPECT_GE(UsableCpuCount(), 1); }

TEST(ThreadsFor, AreNeverMoreThanTheCpus) {
  const int usable = UsableCpuCount();
  EXPECT_EQ(ThreadsFor(0), usable);
  EXPECT_EQ(ThreadsFor(1), 1);
  EXPECT_EQ(ThreadsFor(usable + 1), usable);
}

}  // namespace
}  // namespace rempart::worker
