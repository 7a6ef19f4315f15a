// SPDX-License-Identifier: Apache-2.0
// What every kind of device communicator does: the host's collectives and NCCL, the latter over a
// library made for it.
#include "worker/comm/device_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/worker/comm/device_ranks.h"
#include "worker/comm/host_collectives.h"
#include "worker/comm/nccl_library.h"

namespace rempart::worker {
namespace {

std::unique_ptr<CollectiveLibrary> Library(const std::string& kind) {
  if (kind == "host") return std::make_unique<HostCollectives>();
  auto nccl = Nccl::Load(REMPART_FAKE_NCCL);
  EXPECT_TRUE(nccl.ok()) << nccl.status();
  return nccl.ok() ? *std::move(nccl) : nullptr;
}

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
uint16_t TruncateToBf16(float value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}

// That of a rank: no two alike, of many sizes.
float Number(int rank, int64_t i) {
  return std::sin(static_cast<float>(i * 7 + rank * 3)) * std::exp2f(static_cast<float>(i % 9));
}

class DeviceCommunicators : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  DeviceCommunicators()
      : library_(Library(std::get<0>(GetParam()))), size_(std::get<1>(GetParam())) {}
  std::unique_ptr<CollectiveLibrary> library_;
  const int size_;
};

TEST_P(DeviceCommunicators, AddUpAndAllRanksHaveTheSameBits) {
  DeviceRanks ranks(*library_, size_, size_, {});
  ASSERT_TRUE(ranks.all_connected());
  for (const int64_t count : {int64_t{1}, int64_t{33}, int64_t{20'000}}) {
    std::vector<std::vector<float>> sums(size_);
    std::vector<std::vector<uint16_t>> halves(size_);
    ranks.OnEach([&](int rank) {
      std::vector<float> values(count);
      std::vector<uint16_t> small(count);
      for (int64_t i = 0; i < count; ++i) {
        values[i] = Number(rank, i);
        small[i] = TruncateToBf16(values[i]);
      }
      DeviceCommunicator& communicator = *ranks[rank].communicator;
      EXPECT_EQ(communicator.rank(), rank);
      EXPECT_EQ(communicator.size(), size_);
      EXPECT_TRUE(communicator.AllReduceSum(values.data(), count, DeviceNumber::kF32).ok());
      EXPECT_TRUE(communicator.AllReduceSum(small.data(), count, DeviceNumber::kBF16).ok());
      EXPECT_TRUE(communicator.Finish().ok());
      sums[rank] = values;
      halves[rank] = small;
    });
    for (int rank = 1; rank < size_; ++rank) {
      EXPECT_EQ(std::memcmp(sums[rank].data(), sums[0].data(), count * 4), 0);
      EXPECT_EQ(halves[rank], halves[0]);
    }
    for (int64_t i = 0; i < count; ++i) {
      double exact = 0, of_halves = 0, size = 0;
      for (int rank = 0; rank < size_; ++rank) {
        exact += Number(rank, i);
        of_halves += FromBf16(TruncateToBf16(Number(rank, i)));
        size += std::abs(Number(rank, i));
      }
      ASSERT_NEAR(sums[0][i], exact, size * 1e-6) << i;
      ASSERT_NEAR(FromBf16(halves[0][i]), of_halves, size / 256) << i;
    }
  }
}

TEST_P(DeviceCommunicators, GatherInTheOrderOfRanks) {
  DeviceRanks ranks(*library_, size_, size_, {});
  ASSERT_TRUE(ranks.all_connected());
  ranks.OnEach([&](int rank) {
    const std::vector<uint8_t> own(37, static_cast<uint8_t>(rank + 1));
    std::vector<uint8_t> all(own.size() * size_);
    DeviceCommunicator& communicator = *ranks[rank].communicator;
    EXPECT_TRUE(communicator.AllGather(own.data(), all.data(), 37).ok());
    EXPECT_TRUE(communicator.Finish().ok());
    for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], i / 37 + 1);
  });
}

TEST_P(DeviceCommunicators, BecomePartOfAGraphAndAddAnewEachTimeItIsStarted) {
  DeviceRanks ranks(*library_, size_, size_, {});
  ASSERT_TRUE(ranks.all_connected());
  ranks.OnEach([&](int rank) {
    EmulatedDevice& device = *ranks[rank].device;
    DeviceCommunicator& communicator = *ranks[rank].communicator;
    float value = 1;
    const auto graph =
        device.Record([&] { return communicator.AllReduceSum(&value, 1, DeviceNumber::kF32); });
    ASSERT_TRUE(graph.ok()) << graph.status();
    EXPECT_EQ(value, 1) << "recorded, not done";
    for (int time = 0; time < 3; ++time) ASSERT_TRUE(device.Start(**graph).ok());
    EXPECT_TRUE(communicator.Finish().ok());
    EXPECT_EQ(value, std::pow(static_cast<float>(size_), 3));
  });
}

TEST_P(DeviceCommunicators, AnAbortFromAnotherThreadEndsACollectiveThatNobodyElseJoins) {
  DeviceRanks ranks(*library_, size_, size_, {});
  ASSERT_TRUE(ranks.all_connected());
  std::jthread aborts([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ranks[0].communicator->Abort(absl::UnavailableError("rank 1 is lost"));
  });
  float value = 1;
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = ranks[0].communicator->AllReduceSum(&value, 1, DeviceNumber::kF32);
  if (status.ok()) status = ranks[0].communicator->Finish();
  EXPECT_EQ(status.message(), "rank 1 is lost");
  // Of a deadline of 30 s.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  EXPECT_EQ(ranks[0].communicator->status().message(), "rank 1 is lost");
  EXPECT_FALSE(ranks[0].communicator->AllReduceSum(&value, 1, DeviceNumber::kF32).ok());
  EXPECT_FALSE(ranks[0].communicator->Finish().ok());
}

TEST_P(DeviceCommunicators, ACollectiveThatNobodyElseJoinsEndsByItsDeadline) {
  DeviceCommunicatorOptions options;
  options.timeout = std::chrono::milliseconds(1000);
  DeviceRanks ranks(*library_, size_, size_, options);
  ASSERT_TRUE(ranks.all_connected());
  float value = 1;
  absl::Status status = ranks[0].communicator->AllReduceSum(&value, 1, DeviceNumber::kF32);
  if (status.ok()) status = ranks[0].communicator->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

INSTANTIATE_TEST_SUITE_P(All, DeviceCommunicators,
                         testing::Combine(testing::Values("host", "nccl"), testing::Values(2, 3)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace rempart::worker
