// SPDX-License-Identifier: Apache-2.0
// NCCL's own ways to fail, over a library that fails when told to.
#include "worker/comm/nccl_library.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "tests/worker/comm/device_ranks.h"
#include "tests/worker/comm/fake_nccl.h"
#include "worker/comm/nccl_environment.h"

namespace rempart::worker {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A GPU whose kernels wait for ranks that do not come, until the communicator is aborted.
class WaitingDevice : public EmulatedDevice {
 public:
  WaitingDevice(int64_t memory, const FakeNcclControls* controls, const std::atomic<bool>* waits)
      : EmulatedDevice(memory), controls_(controls), waits_for_peers_(waits) {}
  absl::Status Finish() override {
    Wait();
    return EmulatedDevice::Finish();
  }
  absl::Status Await(int place) override {
    Wait();
    return EmulatedDevice::Await(place);
  }

 private:
  void Wait() const {
    while (*waits_for_peers_ && controls_->aborts == 0) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }

  const FakeNcclControls* const controls_;
  const std::atomic<bool>* const waits_for_peers_;
};

class NcclTest : public testing::Test {
 protected:
  NcclTest() {
    auto nccl = Nccl::Load(REMPART_FAKE_NCCL);
    EXPECT_TRUE(nccl.ok()) << nccl.status();
    nccl_ = *std::move(nccl);
    // The library that Load has opened, not another copy of it.
    void* const handle = dlopen(REMPART_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
    const auto find = reinterpret_cast<FakeNcclControls* (*)()>(dlsym(handle, "FakeNccl"));
    controls_ = find();
    controls_->stalls_init = controls_->stalls_collectives = false;
    controls_->init_result = controls_->collective_result = controls_->async_error = 0;
    controls_->inits = controls_->blocking_inits = controls_->collectives = controls_->aborts = 0;
    options_.connect_timeout = milliseconds(10'000);
    options_.timeout = milliseconds(10'000);
  }

  std::unique_ptr<Nccl> nccl_;
  FakeNcclControls* controls_ = nullptr;
  DeviceCommunicatorOptions options_;
};

TEST_F(NcclTest, CommunicatorsDoNotBlockAndEachIsAbortedOnce) {
  EXPECT_EQ(nccl_->Describe(), "NCCL 2.30.7");
  {
    DeviceRanks ranks(*nccl_, 3, 3, options_);
    ASSERT_TRUE(ranks.all_connected());
    EXPECT_EQ(controls_->inits, 3);
    EXPECT_EQ(controls_->blocking_inits, 0);
    EXPECT_EQ(controls_->collectives, 3) << "one sum has passed the group";
    EXPECT_EQ(controls_->aborts, 0);
  }
  EXPECT_EQ(controls_->aborts, 3);
}

TEST_F(NcclTest, EveryEpochHasAnIdOfItsOwn) {
  const auto a = nccl_->NewId(), b = nccl_->NewId();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->size(), sizeof(NcclUniqueId));
  EXPECT_NE(*a, *b);
}

TEST_F(NcclTest, ARankThatDoesNotComeIsNotWaitedForBeyondTheDeadline) {
  options_.connect_timeout = milliseconds(200);
  DeviceRanks ranks(*nccl_, 3, 2, options_);
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(ranks[rank].connected.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(ranks[rank].connected.message()), HasSubstr("joining the group"));
  }
  EXPECT_EQ(controls_->aborts, 2);
}

TEST_F(NcclTest, JoiningEndsWhenTheGroupIsGivenUp) {
  controls_->stalls_init = true;
  std::stop_source stop;
  std::jthread gives_up([&] {
    std::this_thread::sleep_for(milliseconds(50));
    stop.request_stop();
  });
  DeviceRanks ranks(*nccl_, 2, 2, options_, DeviceRanks::Plain, stop.get_token());
  EXPECT_EQ(ranks[0].connected.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ranks[1].connected.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(controls_->aborts, 2);
}

TEST_F(NcclTest, AnInitThatFailsSaysWhy) {
  controls_->init_result = kNcclInternalError;
  DeviceRanks ranks(*nccl_, 2, 2, options_);
  EXPECT_EQ(ranks[1].connected.message(),
            "NCCL: joining the group: internal error (3): as the test wished");
}

TEST_F(NcclTest, ACollectiveThatFailsFailsAllThatFollows) {
  DeviceRanks ranks(*nccl_, 2, 2, options_);
  ASSERT_TRUE(ranks.all_connected());
  controls_->collective_result = kNcclInternalError;
  float value = 1;
  DeviceCommunicator& communicator = *ranks[0].communicator;
  EXPECT_THAT(std::string(communicator.AllReduceSum(&value, 1, DeviceNumber::kF32).message()),
              HasSubstr("NCCL: all-reduce: internal error (3)"));
  controls_->collective_result = 0;
  EXPECT_FALSE(communicator.AllGather(&value, &value, 4).ok());
  EXPECT_FALSE(communicator.Finish().ok());
}

// Told by NCCL between two steps, when nobody calls it.
TEST_F(NcclTest, AnErrorOfAPeerIsNoticedByItself) {
  DeviceRanks ranks(*nccl_, 2, 2, options_);
  ASSERT_TRUE(ranks.all_connected());
  controls_->async_error = kNcclRemoteError;
  const auto give_up = std::chrono::steady_clock::now() + milliseconds(5000);
  while (ranks[0].communicator->status().ok() && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_THAT(std::string(ranks[0].communicator->status().message()),
              HasSubstr("remote process exited"));
}

TEST_F(NcclTest, AKernelThatWaitsForEverEndsByTheDeadlineOfWhoWaits) {
  options_.timeout = milliseconds(1000);
  for (const bool for_a_mark : {false, true}) {
    std::atomic<bool> waits = false;
    controls_->aborts = 0;
    DeviceRanks ranks(*nccl_, 2, 2, options_, [&](int) {
      return std::make_unique<WaitingDevice>(kRankMemory, controls_, &waits);
    });
    ASSERT_TRUE(ranks.all_connected());
    waits = true;
    DeviceCommunicator& communicator = *ranks[0].communicator;
    const absl::Status status = for_a_mark ? communicator.Await(0) : communicator.Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("did not end within 1000 ms"));
    EXPECT_GE(controls_->aborts, 1);
  }
}

TEST_F(NcclTest, AKernelThatWaitsForEverEndsByAnAbort) {
  std::atomic<bool> waits = false;
  DeviceRanks ranks(*nccl_, 2, 2, options_, [&](int) {
    return std::make_unique<WaitingDevice>(kRankMemory, controls_, &waits);
  });
  ASSERT_TRUE(ranks.all_connected());
  waits = true;
  std::jthread aborts([&] {
    std::this_thread::sleep_for(milliseconds(50));
    ranks[0].communicator->Abort(absl::UnavailableError("the epoch is over"));
  });
  EXPECT_EQ(ranks[0].communicator->Finish().message(), "the epoch is over");
}

// Every rank's, registered with its communicator.
class WindowTest : public NcclTest {
 protected:
  WindowTest() {
    controls_->register_result = 0;
    controls_->has_no_use_for_windows = false;
    controls_->windows = controls_->symmetric = 0;
  }
  static constexpr int64_t kBytes = 5 << 20;

  std::vector<absl::StatusOr<bool>> RegisterOnAll(DeviceRanks& ranks, Nccl& nccl, int size) {
    std::vector<absl::StatusOr<bool>> results(size, false);
    ranks.OnEach([&](int rank) {
      auto memory = CollectiveBuffer::Make(&nccl, *ranks[rank].device, kBytes);
      ASSERT_TRUE(memory.ok()) << memory.status();
      const auto* const bytes = static_cast<const uint8_t*>(memory->data());
      EXPECT_TRUE(std::all_of(bytes, bytes + kBytes, [](uint8_t byte) { return byte == 0; }));
      results[rank] = ranks[rank].communicator->Register(memory->data(), kBytes);
      // What lies in it is symmetric where offsets are the same, and adds up in any case.
      auto* const values = static_cast<float*>(memory->data());
      for (const int offset : {64, 128 * (1 + rank)}) {
        values[offset] = 1;
        EXPECT_TRUE(
            ranks[rank].communicator->AllReduceSum(values + offset, 1, DeviceNumber::kF32).ok());
        EXPECT_TRUE(ranks[rank].communicator->Finish().ok());
        EXPECT_EQ(values[offset], size);
      }
      ranks[rank].communicator.reset();
    });
    return results;
  }
};

TEST_F(WindowTest, MemoryOfTheLibraryIsRegisteredOnAllRanks) {
  DeviceRanks ranks(*nccl_, 3, 3, options_);
  ASSERT_TRUE(ranks.all_connected());
  for (const auto& result : RegisterOnAll(ranks, *nccl_, 3)) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(*result);
  }
  EXPECT_EQ(controls_->windows, 3);
  EXPECT_EQ(controls_->symmetric, 1);
  EXPECT_EQ(controls_->allocations, 0);
}

TEST_F(WindowTest, WhatNcclHasNoUseForOrRefusesIsNoError) {
  for (const int refusal : {0, kNcclInvalidArgument, kNcclInvalidUsage}) {
    controls_->register_result = refusal;
    controls_->has_no_use_for_windows = refusal == 0;
    DeviceRanks ranks(*nccl_, 2, 2, options_);
    ASSERT_TRUE(ranks.all_connected());
    for (const auto& result : RegisterOnAll(ranks, *nccl_, 2)) {
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_FALSE(*result);
    }
  }
}

TEST_F(WindowTest, AnErrorOfNcclFailsTheCommunicator) {
  DeviceRanks ranks(*nccl_, 2, 2, options_);
  ASSERT_TRUE(ranks.all_connected());
  controls_->register_result = kNcclInternalError;
  auto memory = CollectiveBuffer::Make(nccl_.get(), *ranks[0].device, kBytes);
  ASSERT_TRUE(memory.ok());
  EXPECT_THAT(
      std::string(ranks[0].communicator->Register(memory->data(), kBytes).status().message()),
      HasSubstr("NCCL: registering memory: internal error (3)"));
  ranks[0].communicator.reset();
}

TEST_F(WindowTest, ALibraryWithoutSymmetricMemoryTakesTheDevices) {
  auto plain = Nccl::Load(REMPART_PLAIN_NCCL);
  ASSERT_TRUE(plain.ok()) << plain.status();
  DeviceRanks ranks(**plain, 2, 2, options_);
  ASSERT_TRUE(ranks.all_connected());
  for (const auto& result : RegisterOnAll(ranks, **plain, 2)) {
    ASSERT_TRUE(result.ok());
    EXPECT_FALSE(*result);
  }
  EXPECT_EQ(ranks[0].device->used_bytes(), 0);
}

// What Load says of a library that will not do.
std::string Refusal(const std::string& library) {
  const auto refused = Nccl::Load(library);
  EXPECT_TRUE(IsDeviceUnavailable(refused.status())) << refused.status();
  const std::string message(refused.status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("needs NCCL 2.30 or later"), HasSubstr("libnccl.so.2"),
                             HasSubstr("parallelism.tensor to 1")));
  return message;
}

TEST(NcclLoad, RefusesWhatItCannotUse) {
  EXPECT_THAT(Refusal("/nonexistent/libnccl.so.2"), HasSubstr("NCCL cannot be loaded: /nonex"));
  EXPECT_THAT(Refusal(REMPART_OLD_NCCL), HasSubstr("NCCL 2.29.2 is too old"));
  EXPECT_THAT(Refusal(REMPART_INCOMPLETE_NCCL),
              HasSubstr("NCCL 2.30.7 has no function ncclCommAbort"));
}

TEST(NcclEnvironment, TakesWhatIsOnTheList) {
  EXPECT_TRUE(CheckNcclSettings({{"the environment",
                                  {"PATH=/bin", "NCCL_DEBUG=INFO", "NCCL_SOCKET_IFNAME=eth1",
                                   "NCCL_IB_HCA=mlx5", "NCCLISH=1", "NCCL_NET_PLUGIN=none"}}})
                  .ok());
  EXPECT_TRUE(CheckNcclSettings({}).ok());
}

TEST(NcclEnvironment, RefusesTheRestByNameAndPlace) {
  const absl::Status refused =
      CheckNcclSettings({{"the environment",
                          {"NCCL_COMM_ID=10.0.0.1:1234", "NCCL_NET_PLUGIN=libfoo.so",
                           "NCCL_CONF_FILE=/tmp/x", "NCCL_DEBUG=WARN"}},
                         {"/etc/nccl.conf", {"# NCCL_IB_DISABLE=1", "NCCL_TUNER_PLUGIN=bar"}}});
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(refused.message());
  EXPECT_THAT(message, HasSubstr("NCCL_COMM_ID is set in the environment;"));
  EXPECT_THAT(message, HasSubstr("NCCL_NET_PLUGIN is set in the environment, and would load code"));
  EXPECT_THAT(message, HasSubstr("NCCL_CONF_FILE is set in the environment"));
  EXPECT_THAT(message, HasSubstr("NCCL_TUNER_PLUGIN is set in /etc/nccl.conf"));
  EXPECT_THAT(message, HasSubstr("these may be set: NCCL_ALGO, "));
  EXPECT_THAT(message, Not(HasSubstr("NCCL_DEBUG is set")));
  EXPECT_THAT(message, Not(HasSubstr("10.0.0.1"))) << "values may be secrets";
}

TEST(NcclEnvironment, WhatTheConfigurationSaysGoesBeforeTheEnvironment) {
  setenv("NCCL_DEBUG", "WARN", 1);
  SetNcclVariables({{"NCCL_DEBUG", "INFO"}, {"NCCL_IB_HCA", "mlx5"}});
  EXPECT_STREQ(std::getenv("NCCL_DEBUG"), "INFO");
  EXPECT_STREQ(std::getenv("NCCL_IB_HCA"), "mlx5");
  unsetenv("NCCL_DEBUG");
  unsetenv("NCCL_IB_HCA");
}

TEST(NcclEnvironment, PlugInsAreTurnedOffAndThatIsNoOffence) {
  TurnOffNcclPlugins();
  EXPECT_STREQ(std::getenv("NCCL_NET_PLUGIN"), "none");
  EXPECT_STREQ(std::getenv("NCCL_TUNER_PLUGIN"), "none");
  EXPECT_TRUE(CheckNcclSettings({ReadNcclSettings()[0]}).ok());
}

TEST(LockedMemory, IsRaisedAsFarAsItMayBe) {
  rlimit limit = {};
  const uint64_t locked = RaiseLockedMemory();
  ASSERT_EQ(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
  EXPECT_EQ(limit.rlim_cur, limit.rlim_max);
  EXPECT_EQ(locked, limit.rlim_max);
}

TEST(LockedMemory, TooLittleIsSaidWhereThereAreCardsThatNeedIt) {
  const std::string why = WhyNoRdma("/tmp", 8 << 20);
  EXPECT_THAT(why, HasSubstr("may lock only 8192 KiB"));
  EXPECT_THAT(why, HasSubstr("LimitMEMLOCK=infinity"));
  EXPECT_EQ(WhyNoRdma("/tmp", RLIM_INFINITY), "");
  EXPECT_EQ(WhyNoRdma("/nowhere/infiniband", 8 << 20), "");
}

}  // namespace
}  // namespace rempart::worker
