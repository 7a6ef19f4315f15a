// SPDX-License-Identifier: Apache-2.0
// What every kind of device communicator does: the host's collectives and NCCL, the latter over a
// library made for it; and either with small sums in one shot.
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
#include "worker/comm/one_shot.h"

namespace rempart::worker {
namespace {

std::unique_ptr<CollectiveLibrary> Library(const std::string& kind) {
  if (kind == "host") return std::make_unique<HostCollectives>();
  if (kind != "nccl") {
    OneShotOptions options;
    options.use = OneShotUse::kAlways;
    options.buffer_bytes = 64 << 10;  // the largest of the sums below goes by the library
    options.measure_time = std::chrono::milliseconds(0);
    return std::make_unique<OneShot>(Library(kind == "one_shot_host" ? "host" : "nccl"), options);
  }
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

// What a layer ends with: of all rows, and of those that a step wants.
TEST_P(DeviceCommunicators, AddUpBranchesIntoTheResidualAndNormIt) {
  DeviceRanks ranks(*library_, size_, size_, {});
  ASSERT_TRUE(ranks.all_connected());
  const std::vector<int32_t> some = {6, 0, 3};
  constexpr int64_t kTokens = 7, kCols = 136;
  for (const int32_t* const rows : {static_cast<const int32_t*>(nullptr), some.data()}) {
    const int64_t num_rows = rows == nullptr ? kTokens : static_cast<int64_t>(some.size());
    ranks.OnEach([&](int rank) {
      // Whole numbers below 2^8: BF16 holds them and their sums.
      std::vector<uint16_t> branch(kTokens * kCols), out(num_rows * kCols);
      std::vector<float> residual(kTokens * kCols, 0.5f), weight(kCols, 2.0f);
      const auto number = [](int of, int64_t i) { return static_cast<float>(of * 5 + i % 11); };
      for (size_t i = 0; i < branch.size(); ++i) branch[i] = TruncateToBf16(number(rank, i));
      DeviceCommunicator& communicator = *ranks[rank].communicator;
      const kernels::AddNormArgs norm = {
          residual.data(), branch.data(), nullptr,  weight.data(), 1e-5f,
          out.data(),      rows,          num_rows, kCols};
      EXPECT_TRUE(communicator.AllReduceNorm(norm, kTokens).ok());
      EXPECT_TRUE(communicator.Finish().ok());
      for (int64_t i = 0; i < num_rows; ++i) {
        const int64_t first = (rows == nullptr ? i : rows[i]) * kCols;
        double squares = 0;
        for (int64_t j = 0; j < kCols; ++j) {
          float sum = 0.5f;
          for (int of = 0; of < size_; ++of) sum += number(of, first + j);
          ASSERT_EQ(residual[first + j], sum) << i << ", " << j;
          squares += static_cast<double>(sum) * sum;
        }
        const double scale = 2 / std::sqrt(squares / kCols + 1e-5);
        for (int64_t j = 0; j < kCols; ++j) {
          ASSERT_NEAR(FromBf16(out[i * kCols + j]), residual[first + j] * scale, 0.02) << j;
        }
      }
    });
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

TEST_P(DeviceCommunicators, AwaitWhatIsBeforeAMarkAlone) {
  DeviceRanks ranks(*library_, size_, size_, {});
  ASSERT_TRUE(ranks.all_connected());
  ranks.OnEach([&](int rank) {
    EmulatedDevice& device = *ranks[rank].device;
    DeviceCommunicator& communicator = *ranks[rank].communicator;
    device.Defer();
    float values[] = {1, 2};
    for (int place = 0; place < 2; ++place) {
      EXPECT_TRUE(communicator.AllReduceSum(&values[place], 1, DeviceNumber::kF32).ok());
      device.Mark(place);
    }
    EXPECT_EQ(values[0], 1);
    EXPECT_TRUE(communicator.Await(0).ok());
    EXPECT_EQ(values[0], static_cast<float>(size_));
    EXPECT_EQ(values[1], 2) << "it is behind the mark";
    EXPECT_TRUE(communicator.Await(1).ok());
    EXPECT_EQ(values[1], 2 * static_cast<float>(size_));
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
  EXPECT_FALSE(ranks[0].communicator->Await(0).ok());
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
                         testing::Combine(testing::Values("host", "nccl", "one_shot_host",
                                                          "one_shot_nccl"),
                                          testing::Values(2, 3)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace rempart::worker
