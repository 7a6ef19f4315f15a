// SPDX-License-Identifier: Apache-2.0
// How ranks come to sum in one shot, when they do not, and what ends a sum that a rank does not
// come to. What sums in one shot give: device_communicator_test.cc, and tests/kernels/cuda.
#include "worker/comm/one_shot.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

#include "kernels/cuda/layout.h"
#include "tests/worker/comm/device_ranks.h"
#include "tests/worker/comm/fake_nccl.h"
#include "worker/comm/host_collectives.h"
#include "worker/comm/nccl_library.h"

namespace rempart::worker {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

OneShotOptions Small(OneShotUse use = OneShotUse::kAlways) {
  OneShotOptions options;
  options.use = use;
  options.buffer_bytes = 32 << 10;
  options.measure_time = milliseconds(60'000);
  return options;
}

// The sum of 1, 2, ... over the ranks, of each rank that comes.
void ExpectSum(DeviceCommunicator& communicator, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count), 1.0f + communicator.rank());
  ASSERT_TRUE(communicator.AllReduceSum(values.data(), count, DeviceNumber::kF32).ok());
  ASSERT_TRUE(communicator.Finish().ok());
  const int size = communicator.size();
  for (const float value : values) ASSERT_EQ(value, size * (size + 1) / 2);
}

TEST(Crossover, IsWhereTheLibraryIsFirstFaster) {
  EXPECT_EQ(Crossover({}), 0);
  EXPECT_EQ(Crossover({{8192, 9, 8}, {16384, 5, 8}}), 0) << "smaller ones are slower";
  EXPECT_EQ(Crossover({{8192, 5, 8}, {16384, 8, 8}}), 8192);
  EXPECT_EQ(Crossover({{8192, 5, 8}, {16384, 9, 8}, {32768, 7, 8}}), 8192);
  EXPECT_EQ(Crossover({{8192, 5, 8}, {16384, 6, 8}}), 16384) << "as far as was measured";
}

TEST(OneShot, MeasuresEverySizeAndAllRanksHaveTheSameAnswer) {
  OneShot library(std::make_unique<HostCollectives>(), Small(OneShotUse::kMeasured));
  DeviceRanks ranks(library, 3, 3, {});
  ASSERT_TRUE(ranks.all_connected());
  const OneShotFacts facts = ranks[0].communicator->one_shot();
  EXPECT_EQ(facts.absence, "");
  std::vector<int64_t> sizes;
  for (const SumTime& time : facts.times) {
    sizes.push_back(time.bytes);
    EXPECT_GT(time.one_shot_microseconds, 0);
    EXPECT_GT(time.library_microseconds, 0);
  }
  EXPECT_THAT(sizes, ElementsAre(8192, 16384, 32768));
  EXPECT_EQ(facts.max_bytes, Crossover(facts.times));
  for (int rank = 1; rank < 3; ++rank) {
    const OneShotFacts other = ranks[rank].communicator->one_shot();
    EXPECT_EQ(other.max_bytes, facts.max_bytes);
    EXPECT_EQ(other.times[1].one_shot_microseconds, facts.times[1].one_shot_microseconds);
  }
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 100); });
}

TEST(OneShot, MeasuresNoLargerSizeOnceTimeIsUp) {
  OneShotOptions options = Small(OneShotUse::kMeasured);
  options.measure_time = milliseconds(0);
  OneShot library(std::make_unique<HostCollectives>(), options);
  DeviceRanks ranks(library, 2, 2, {});
  ASSERT_TRUE(ranks.all_connected());
  EXPECT_EQ(ranks[0].communicator->one_shot().times.size(), 1u);
}

TEST(OneShot, ADeviceThatReachesNoOtherLeavesAllToTheLibrary) {
  OneShot library(std::make_unique<HostCollectives>(), Small());
  DeviceRanks ranks(library, 3, 3, {}, [](int rank) {
    auto device = DeviceRanks::Plain(rank);
    if (rank == 1) device->CutOff();
    return device;
  });
  ASSERT_TRUE(ranks.all_connected());
  EXPECT_EQ(ranks[1].communicator->one_shot().absence, "the emulated GPU reaches no other");
  for (const int rank : {0, 2}) {
    const OneShotFacts facts = ranks[rank].communicator->one_shot();
    EXPECT_EQ(facts.absence, "another rank of the group cannot take part");
    EXPECT_EQ(facts.max_bytes, 0);
    EXPECT_THAT(facts.times, IsEmpty());
  }
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 100); });
  for (int rank = 0; rank < 3; ++rank) {
    ranks[rank].communicator.reset();
    EXPECT_EQ(ranks[rank].device->shares_opened(), 0);
  }
}

TEST(OneShot, MoreRanksThanTheKernelsKnowLeaveAllToTheLibrary) {
  OneShot library(std::make_unique<HostCollectives>(), Small());
  DeviceRanks ranks(library, 9, 9, {});
  ASSERT_TRUE(ranks.all_connected());
  EXPECT_EQ(ranks[8].communicator->one_shot().absence, "there are more than 8 ranks");
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 10); });
}

TEST(OneShot, AGpuThatCannotStartTheKernelsLeavesAllToTheLibrary) {
  OneShot library(std::make_unique<HostCollectives>(), Small());
  DeviceRanks ranks(library, 3, 3, {}, [](int rank) {
    auto device = DeviceRanks::Plain(rank);
    if (rank == 1) {
      device->FailNextTry(absl::InternalError("a launch: too many resources requested"),
                          /*breaks=*/false);
    }
    return device;
  });
  ASSERT_TRUE(ranks.all_connected());
  EXPECT_EQ(ranks[1].communicator->one_shot().absence, "a launch: too many resources requested");
  EXPECT_EQ(ranks[2].communicator->one_shot().absence, "rank 1 shares no memory");
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 100); });
}

TEST(OneShot, AGpuThatBreaksWhileItIsLinkedFailsTheLinkOfAllRanks) {
  OneShot library(std::make_unique<HostCollectives>(), Small());
  DeviceRanks ranks(library, 3, 3, {}, [](int rank) {
    auto device = DeviceRanks::Plain(rank);
    if (rank == 1) {
      device->FailNextTry(absl::InternalError("GPU: an illegal memory access was encountered"),
                          /*breaks=*/true);
    }
    return device;
  });
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(ranks[rank].communicator, nullptr);
  EXPECT_EQ(ranks[1].connected.message(), "GPU: an illegal memory access was encountered");
}

// A GPU loads a kernel when it is first started, and NCCL what it needs for a type of number.
TEST(OneShot, NothingIsRecordedThatHasNeverRun) {
  OneShot library(std::make_unique<HostCollectives>(), Small(OneShotUse::kMeasured));
  DeviceRanks ranks(library, 2, 2, {});
  ASSERT_TRUE(ranks.all_connected());
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_GT(ranks[rank].device->graphs(), 0);
    EXPECT_THAT(ranks[rank].device->recorded_unloaded(), IsEmpty());
  }
}

// What it opens is not what the other has shared: its flags never arrive.
class MisledDevice : public EmulatedDevice {
 public:
  explicit MisledDevice(EmulatedDevice& other) : EmulatedDevice(kRankMemory), other_(other) {}
  absl::StatusOr<void*> OpenShared(const MemoryShare&) override {
    auto shared = other_.ShareMemory(kernels::PeerSlabBytes(32 << 10));
    return shared.ok() ? absl::StatusOr<void*>(shared->memory) : shared.status();
  }

 private:
  EmulatedDevice& other_;
};

TEST(OneShot, SumsThatDoNotComeOutLeaveAllToTheLibrary) {
  EmulatedDevice elsewhere(kRankMemory);
  OneShot library(std::make_unique<HostCollectives>(), Small());
  DeviceRanks ranks(library, 2, 2, {}, [&](int rank) -> std::unique_ptr<EmulatedDevice> {
    if (rank == 0) return DeviceRanks::Plain(rank);
    return std::make_unique<MisledDevice>(elsewhere);
  });
  ASSERT_TRUE(ranks.all_connected()) << ranks[0].connected;
  EXPECT_EQ(ranks[0].communicator->one_shot().absence,
            "rank 1 did not come to a sum of the GPUs within 2000 ms");
  EXPECT_EQ(ranks[1].communicator->one_shot().max_bytes, 0);
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 100); });
}

// Takes its time to give back memory, and looks whether another rank's kernel waits for it
// meanwhile: on a GPU that may be for ever, for what frees memory waits for kernels that run there,
// and for those of GPUs that reach it.
class SlowlyFreeingDevice : public EmulatedDevice {
 public:
  SlowlyFreeingDevice() : EmulatedDevice(kRankMemory) {}
  void Free(void* memory) override {
    std::this_thread::sleep_for(milliseconds(30));
    void* const slab = ShareMemory(kernels::PeerSlabBytes(32 << 10))->memory;
    const uint64_t flag =
        std::atomic_ref(*kernels::cuda::PeerFlag(slab, /*block=*/0, /*from=*/0)).load();
    const uint32_t rounds = *kernels::cuda::PeerRounds(slab);
    if (static_cast<int32_t>(static_cast<uint32_t>(flag) - rounds) > 0) ++was_waited_for;
    EmulatedDevice::Free(memory);
  }
  std::atomic<int> was_waited_for = 0;
};

TEST(OneShot, NobodysKernelWaitsForARankThatFreesMemory) {
  OneShot library(std::make_unique<HostCollectives>(), Small());
  SlowlyFreeingDevice* slow = nullptr;
  DeviceRanks ranks(library, 2, 2, {}, [&](int rank) -> std::unique_ptr<EmulatedDevice> {
    if (rank == 0) return DeviceRanks::Plain(rank);
    auto device = std::make_unique<SlowlyFreeingDevice>();
    slow = device.get();
    return device;
  });
  ASSERT_TRUE(ranks.all_connected());
  EXPECT_EQ(ranks[1].communicator->one_shot().absence, "");
  EXPECT_EQ(slow->was_waited_for, 0);
}

// The devices, and what they share, outlive an epoch; the host's links and the communicators do
// not.
TEST(OneShot, TheNextEpochUsesTheSameMemoryWhateverTheLastOneLeftInIt) {
  OneShot library(std::make_unique<HostCollectives>(), Small());
  std::vector<std::unique_ptr<EmulatedDevice>> devices;
  for (int rank = 0; rank < 2; ++rank) devices.push_back(DeviceRanks::Plain(rank));
  for (int epoch = 0; epoch < 3; ++epoch) {
    const auto hosts = CreateInProcess(2, {});
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        auto made = library.Connect(*devices[rank], {"host", hosts[rank].get()}, {}, {});
        ASSERT_TRUE(made.ok()) << made.status();
        ExpectSum(**made, 100);
        ASSERT_TRUE(hosts[rank]->Barrier().ok());
        // Rank 0 goes on alone, and into the abort that ends the epoch.
        if (rank != 0) return;
        std::jthread aborts([&] {
          std::this_thread::sleep_for(milliseconds(30));
          (*made)->Abort(absl::UnavailableError("the epoch is over"));
        });
        float value = 1;
        EXPECT_EQ((*made)->AllReduceSum(&value, 1, DeviceNumber::kF32).message(),
                  "the epoch is over");
      });
    }
  }
  EXPECT_EQ(devices[0]->shares_opened(), 0);
}

class OneShotOverNccl : public testing::Test {
 protected:
  OneShotOverNccl() {
    auto nccl = Nccl::Load(REMPART_FAKE_NCCL);
    EXPECT_TRUE(nccl.ok()) << nccl.status();
    library_ = std::make_unique<OneShot>(*std::move(nccl), Small());
    void* const handle = dlopen(REMPART_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
    controls_ = reinterpret_cast<FakeNcclControls* (*)()>(dlsym(handle, "FakeNccl"))();
    controls_->async_error = 0;
  }
  ~OneShotOverNccl() override { controls_->async_error = 0; }
  std::unique_ptr<OneShot> library_;
  FakeNcclControls* controls_ = nullptr;
};

TEST_F(OneShotOverNccl, SmallSumsDoNotReachNccl) {
  DeviceRanks ranks(*library_, 2, 2, {});
  ASSERT_TRUE(ranks.all_connected());
  const int before = controls_->collectives;
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 8192); });
  EXPECT_EQ(controls_->collectives, before);
  ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 8193); });
  EXPECT_EQ(controls_->collectives, before + 2);
}

// Symmetric memory makes NCCL faster: what is small is measured again, with that memory.
TEST_F(OneShotOverNccl, MeasuresAnewOnceMemoryIsRegistered) {
  for (const bool is_of_use : {true, false}) {
    controls_->has_no_use_for_windows = !is_of_use;
    controls_->symmetric = 0;
    DeviceRanks ranks(*library_, 2, 2, {});
    ASSERT_TRUE(ranks.all_connected());
    std::vector<CollectiveBuffer> memory(2);
    ranks.OnEach([&](int rank) {
      auto made = CollectiveBuffer::Make(library_.get(), *ranks[rank].device, 64 << 10);
      ASSERT_TRUE(made.ok()) << made.status();
      memory[rank] = *std::move(made);
      const auto registered = ranks[rank].communicator->Register(memory[rank].data(), 64 << 10);
      ASSERT_TRUE(registered.ok()) << registered.status();
      EXPECT_EQ(*registered, is_of_use);
    });
    EXPECT_EQ(ranks[0].communicator->one_shot().times.size(), 3u);
    EXPECT_EQ(controls_->symmetric > 0, is_of_use);
    ranks.OnEach([&](int rank) { ExpectSum(*ranks[rank].communicator, 100); });
    for (int rank = 0; rank < 2; ++rank) ranks[rank].communicator.reset();
  }
  controls_->has_no_use_for_windows = false;
}

// NCCL hears of a lost peer; the kernel that waits for it hears it from there.
TEST_F(OneShotOverNccl, ALostPeerThatNcclNoticesEndsASumThatWaitsForIt) {
  DeviceRanks ranks(*library_, 2, 2, {});
  ASSERT_TRUE(ranks.all_connected());
  std::jthread loses([&] {
    std::this_thread::sleep_for(milliseconds(50));
    controls_->async_error = kNcclRemoteError;
  });
  float value = 1;
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status ended = ranks[0].communicator->AllReduceSum(&value, 1, DeviceNumber::kF32);
  EXPECT_THAT(std::string(ended.message()), HasSubstr("remote process exited"));
  // Of a deadline of 30 s.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST_F(OneShotOverNccl, LinkingEndsWhenTheGroupIsGivenUp) {
  // Rank 1 of 2 does not come after NCCL has linked it.
  std::stop_source stop;
  const auto hosts = CreateInProcess(2, {});
  auto id = library_->NewId();
  ASSERT_TRUE(id.ok());
  auto plain = Nccl::Load(REMPART_FAKE_NCCL);
  ASSERT_TRUE(plain.ok());
  std::jthread other([&] {
    EmulatedDevice device(kRankMemory);
    auto linked = (*plain)->Connect(device, {*id, hosts[1].get()}, {}, {});
    EXPECT_TRUE(linked.ok()) << linked.status();
    std::this_thread::sleep_for(milliseconds(50));
    stop.request_stop();
    hosts[1]->Abort(absl::UnavailableError("given up"), -1);
  });
  EmulatedDevice device(kRankMemory);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(library_->Connect(device, {*id, hosts[0].get()}, {}, stop.get_token()).ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

}  // namespace
}  // namespace rempart::worker
