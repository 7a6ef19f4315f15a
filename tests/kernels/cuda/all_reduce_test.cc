// SPDX-License-Identifier: Apache-2.0
// Ranks that meet: each runs its kernels over the emulator in a thread of its own, over memory that
// all share, many rounds in a row, with inputs in two buffers in turn.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kRanks = 3;
constexpr int kRounds = 12;
constexpr int64_t kRows = 2;
constexpr int64_t kCols = 64;

float InputOf(int rank, int round, int64_t i) {
  return static_cast<float>((rank + 1) * 8 + round % 5) + static_cast<float>(i % 3);
}

TEST(AllReduce, RanksThatMeetAgreeInEveryRound) {
  std::vector<std::vector<uint16_t>> inputs(2 * kRanks, std::vector<uint16_t>(kRows * kCols));
  std::vector<std::vector<uint32_t>> flags(kRanks, std::vector<uint32_t>(kAllReduceFlags, 0));
  std::vector<std::vector<float>> residuals(kRanks, std::vector<float>(kRows * kCols, 0.0f));
  const std::vector<float> weight(kCols, 1.0f);
  std::atomic<int> wrong = 0;
  const auto run_rank = [&](int rank) {
    std::mt19937 random(rank);
    std::vector<uint16_t> out(kRows * kCols);
    uint32_t error = 0;
    for (int round = 0; round < kRounds; ++round) {
      AllReduceNormArgs args;
      for (int i = 0; i < kRanks; ++i) {
        args.inputs[i] = inputs[2 * i + round % 2].data();
        args.flags[i] = flags[i].data();
      }
      std::vector<uint16_t>& own = inputs[2 * rank + round % 2];
      for (int64_t i = 0; i < kRows * kCols; ++i) own[i] = ToBf16(InputOf(rank, round, i)).bits;
      if (random() % 3 == 0) std::this_thread::yield();
      std::vector<float>& residual = residuals[rank];
      std::fill(residual.begin(), residual.end(), 0.0f);
      args.rank = rank;
      args.ranks = kRanks;
      args.timeout_ns = 60'000'000'000;
      args.error = &error;
      args.norm = {residual.data(), nullptr, nullptr, weight.data(), 1e-5f,
                   out.data(),      nullptr, kRows,   kCols};
      AllReduceNorm(args, nullptr);
      for (int64_t i = 0; i < kRows * kCols; ++i) {
        float sum = 0;
        for (int r = 0; r < kRanks; ++r) sum += InputOf(r, round, i);
        wrong += residual[i] != sum;
      }
    }
    wrong += static_cast<int>(error);
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) threads.emplace_back(run_rank, rank);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace rempart::kernels::cuda
