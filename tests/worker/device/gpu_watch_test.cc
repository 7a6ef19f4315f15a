// SPDX-License-Identifier: Apache-2.0
// The watch over a library that is loaded like the driver's, while it runs.
#include "worker/device/gpu_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "tests/worker/device/fake_nvml.h"
#include "worker/device/device.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(30);

// CUDA shows the driver's GPUs in another order: 2, 0, 1.
absl::StatusOr<std::vector<std::string>> Reordered() {
  return std::vector<std::string>{"0000:12:00.0", "0000:10:00.0", "0000:11:00.0"};
}

class GpuWatchTest : public testing::Test {
 protected:
  GpuWatchOptions Options(int first_gpu, int count) {
    GpuWatchOptions options;
    options.find = Reordered;
    options.first_gpu = first_gpu;
    options.count = count;
    options.nvml_library = REMPART_FAKE_NVML;
    options.period = absl::Milliseconds(100);
    return options;
  }
  void Start(GpuWatchOptions options) {
    watch_.emplace(std::move(options), [this](const GpuFault& fault) {
      ++broken_count_;
      broken_xid_ = fault.xid;
    });
  }
  template <class Condition>
  bool Eventually(const Condition& condition) {
    const absl::Time end = absl::Now() + kLimit;
    while (!condition()) {
      if (absl::Now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }
  bool AwaitGpus(size_t count) {
    return Eventually([&] { return watch_->snapshot().gpus.size() == count; });
  }
  absl::Duration TimeToStop() {
    const absl::Time start = absl::Now();
    watch_.reset();
    return absl::Now() - start;
  }

  FakeNvml driver_{REMPART_FAKE_NVML};
  std::atomic<int> broken_count_ = 0;
  std::atomic<int64_t> broken_xid_ = 0;
  std::optional<GpuWatch> watch_;
};

TEST_F(GpuWatchTest, TellsTheGpusOfThisPodAsCudaCountsThem) {
  Start(Options(1, 2));
  ASSERT_TRUE(AwaitGpus(2));
  const GpuSnapshot snapshot = watch_->snapshot();
  EXPECT_EQ(snapshot.problem, "");
  EXPECT_EQ(snapshot.driver_version, "580.65.06");
  EXPECT_EQ(snapshot.cuda_version, "13.1");
  EXPECT_EQ(snapshot.gpus[0].uuid, "GPU-0");
  EXPECT_EQ(snapshot.gpus[1].uuid, "GPU-1");
  ASSERT_EQ(snapshot.pairs.size(), 1u);
  EXPECT_EQ(snapshot.pairs[0].nvlinks, 2);
  EXPECT_EQ(snapshot.pairs[0].path, "PHB");
  EXPECT_FALSE(snapshot.fault.has_value());
  EXPECT_GT(watch_->version(), 0);
  EXPECT_LT(TimeToStop(), absl::Seconds(1));
  EXPECT_EQ(driver_.open_count(), 0);
}

TEST_F(GpuWatchTest, GpusWithoutLinksAreToldAsSuch) {
  Start(Options(0, 2));
  ASSERT_TRUE(AwaitGpus(2));
  const GpuSnapshot snapshot = watch_->snapshot();
  EXPECT_EQ(snapshot.gpus[0].uuid, "GPU-2");
  ASSERT_EQ(snapshot.pairs.size(), 1u);
  EXPECT_EQ(snapshot.pairs[0].nvlinks, 0);
  EXPECT_EQ(snapshot.pairs[0].path, "SYS");
}

TEST_F(GpuWatchTest, HearsXidsWhileItRuns) {
  Start(Options(1, 2));
  ASSERT_TRUE(AwaitGpus(2));
  const int64_t version = watch_->version();
  driver_.Raise(2, 79);  // of a GPU that is not ours
  driver_.Raise(1, 31);
  ASSERT_TRUE(Eventually([&] { return watch_->snapshot().fault.has_value(); }));
  EXPECT_EQ(watch_->snapshot().fault->xid, 31);
  EXPECT_EQ(watch_->snapshot().fault->gpu, 1);
  EXPECT_GT(watch_->version(), version);
  EXPECT_EQ(broken_count_, 0);
  driver_.Raise(0, 48);
  ASSERT_TRUE(Eventually([&] { return broken_count_ == 1; }));
  EXPECT_EQ(broken_xid_, 48);
  driver_.Raise(0, 95);
  ASSERT_TRUE(Eventually([&] { return watch_->snapshot().xids.count({0, 95}) == 1; }));
  EXPECT_EQ(broken_count_, 1) << "once";
  EXPECT_EQ(watch_->snapshot().xids.count({0, 79}), 0u);
}

TEST_F(GpuWatchTest, ReadsTheFactsAgain) {
  Start(Options(1, 1));
  ASSERT_TRUE(AwaitGpus(1));
  driver_.Set("used_mib", 0, 4096);
  driver_.Set("ecc", 0, 2);
  EXPECT_TRUE(Eventually([&] {
    const GpuFacts gpu = watch_->snapshot().gpus[0];
    return gpu.ecc_uncorrected == 2 && gpu.used_bytes == int64_t{4} << 30;
  }));
  EXPECT_EQ(broken_count_, 0);
  driver_.Set("recovery", 0, 2);
  EXPECT_TRUE(Eventually([&] { return broken_count_ == 1; }));
  EXPECT_THAT(watch_->snapshot().fault->meaning, HasSubstr("must be rebooted"));
}

TEST_F(GpuWatchTest, AGpuThatIsGoneAtTheStartIsSaidAtOnce) {
  driver_.Set("lost", 0, 1);
  Start(Options(1, 1));
  EXPECT_TRUE(Eventually([&] { return broken_count_ == 1; }));
  EXPECT_EQ(broken_xid_, 0);
}

TEST_F(GpuWatchTest, GoesOnWithoutXids) {
  driver_.Set("no_events", 0, 1);
  Start(Options(1, 1));
  EXPECT_TRUE(Eventually([&] { return !watch_->snapshot().problem.empty(); }));
  EXPECT_THAT(watch_->snapshot().problem, HasSubstr("XIDs are not heard"));
  driver_.Set("ecc", 0, 7);
  EXPECT_TRUE(Eventually([&] { return watch_->snapshot().gpus[0].ecc_uncorrected == 7; }));
  EXPECT_LT(TimeToStop(), absl::Seconds(1));
}

TEST_F(GpuWatchTest, SaysWhyNothingIsWatched) {
  struct Case {
    GpuFinder find;
    std::string library;
    const char* problem;
  };
  const std::vector<Case> cases = {
      {Reordered, "/nonexistent/libnvidia-ml.so.1", "no NVIDIA driver"},
      {Reordered, REMPART_FAKE_NVML_TOO_OLD, "NVML has no nvmlEventSetCreate"},
      {[] { return DeviceUnavailable("built without CUDA"); }, REMPART_FAKE_NVML,
       "built without CUDA"},
      {[]() -> absl::StatusOr<std::vector<std::string>> {
         return std::vector<std::string>{"0000:10:00.0"};
       },
       REMPART_FAKE_NVML, "CUDA shows 1 GPUs, and this pod's are 1 to 1"},
      {[]() -> absl::StatusOr<std::vector<std::string>> {
         return std::vector<std::string>{"0000:10:00.0", "0000:66:00.0"};
       },
       REMPART_FAKE_NVML, "0 GPUs at the address 0000:66:00.0"}};
  for (const Case& one : cases) {
    GpuWatchOptions options = Options(1, 1);
    options.find = one.find;
    options.nvml_library = one.library;
    Start(options);
    EXPECT_TRUE(Eventually([&] { return !watch_->snapshot().problem.empty(); })) << one.problem;
    EXPECT_THAT(watch_->snapshot().problem, HasSubstr(one.problem));
    EXPECT_TRUE(watch_->snapshot().gpus.empty());
    EXPECT_LT(TimeToStop(), absl::Seconds(1));
  }
  EXPECT_EQ(broken_count_, 0);
}

TEST_F(GpuWatchTest, ADriverThatDoesNotAnswerHoldsNobodyUp) {
  Start(Options(1, 1));
  ASSERT_TRUE(AwaitGpus(1));
  driver_.Set("stuck_ms", 0, 3000);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // it is in the call now
  EXPECT_LT(TimeToStop(), absl::Seconds(2));
  driver_.Set("stuck_ms", 0, 0);
  // The thread ends by itself, and takes the library down with it.
  EXPECT_TRUE(Eventually([&] { return driver_.open_count() == 0; }));
}

}  // namespace
}  // namespace rempart::worker
