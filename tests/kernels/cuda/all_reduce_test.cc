// SPDX-License-Identifier: Apache-2.0
// Ranks that meet: each runs its kernels over the emulator in a thread of its own, over slabs that
// all reach. Many rounds of all kinds and sizes in a row, then ranks that do not come.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cuda/emulator.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int64_t kBufferBytes = 64 * 1024;
constexpr uint64_t kPatient = 60'000'000'000;

// The slabs and stop words of a group, as its ranks see them.
class Group {
 public:
  explicit Group(int ranks, uint64_t timeout_ns = kPatient) : ranks_(ranks), stops_(ranks, 0) {
    group_.ranks = ranks;
    group_.buffer_bytes = kBufferBytes;
    group_.epoch = 1;
    group_.timeout_ns = timeout_ns;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto size = static_cast<size_t>(PeerSlabBytes(kBufferBytes) / 16);
      slabs_.push_back(std::make_unique<uint4[]>(size));
      group_.slabs[rank] = slabs_.back().get();
    }
  }
  PeerGroup Of(int rank) {
    PeerGroup group = group_;
    group.rank = rank;
    group.stop = &stops_[static_cast<size_t>(rank)];
    return group;
  }
  // `body` on a thread for each rank.
  void OnEach(const std::function<void(int rank)>& body) const {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks_; ++rank) threads.emplace_back(body, rank);
    for (std::thread& thread : threads) thread.join();
  }
  // As the ranks of the next epoch find the slabs.
  void BeginEpoch() {
    ++group_.epoch;
    for (auto& slab : slabs_) std::memset(PeerRounds(slab.get()), 0, kAllReduceBlocks * 4);
    std::fill(stops_.begin(), stops_.end(), 0);
  }
  uint32_t stop(int rank) const { return stops_[static_cast<size_t>(rank)]; }
  void Stop(int rank) {
    std::atomic_ref<uint32_t>(stops_[static_cast<size_t>(rank)]).store(kPeersStopped);
  }

 private:
  const int ranks_;
  PeerGroup group_;
  std::vector<std::unique_ptr<uint4[]>> slabs_;
  std::vector<uint32_t> stops_;
};

// Of few bits, so that every type holds it and sums are exact; no two ranks and rounds alike.
float InputOf(int rank, int round, int64_t i) {
  return static_cast<float>((rank + 1) * 8 + round % 5) + static_cast<float>(i % 3);
}
float SumOf(int ranks, int round, int64_t i) {
  float sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += InputOf(rank, round, i);
  return sum;
}

template <class T>
constexpr DType kTypeOf = sizeof(T) == 4 ? DType::kF32 : DType::kBF16;
template <>
constexpr DType kTypeOf<Half> = DType::kF16;

// The values lie `shift` numbers behind an address that is aligned. Returns how many are wrong.
template <class T>
int AllReduceOnce(const PeerGroup& peers, int round, int64_t count, int shift) {
  constexpr T kGuard = {0x55};
  std::vector<T> memory(static_cast<size_t>(count + shift + 1), kGuard);
  T* const values = memory.data() + shift;
  for (int64_t i = 0; i < count; ++i) Store(&values[i], InputOf(peers.rank, round, i));
  AllReduce({peers, values, kTypeOf<T>, count}, nullptr);
  int wrong = std::memcmp(&values[count], &kGuard, sizeof(T)) != 0;
  for (int64_t i = 0; i < count; ++i) wrong += ToFloat(values[i]) != SumOf(peers.ranks, round, i);
  return wrong;
}

int AllReduceNormOnce(const PeerGroup& peers, int round, int64_t num_tokens, int64_t cols,
                      const std::vector<int32_t>& rows) {
  const auto size = static_cast<size_t>(num_tokens * cols);
  const int64_t num_rows = rows.empty() ? num_tokens : static_cast<int64_t>(rows.size());
  std::vector<uint16_t> branch(size), out(static_cast<size_t>(num_rows * cols));
  std::vector<float> residual(size, 1.0f);
  const std::vector<float> weight(static_cast<size_t>(cols), 1.0f);
  for (size_t i = 0; i < size; ++i) {
    branch[i] = ToBf16(InputOf(peers.rank, round, static_cast<int64_t>(i))).bits;
  }
  AllReduceNormArgs args;
  args.peers = peers;
  args.norm = {residual.data(),
               branch.data(),
               nullptr,
               weight.data(),
               1e-5f,
               out.data(),
               rows.empty() ? nullptr : rows.data(),
               num_rows,
               cols};
  AllReduceNorm(args, nullptr);
  int wrong = 0;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = rows.empty() ? i : rows[static_cast<size_t>(i)];
    for (int64_t at = row * cols; at < (row + 1) * cols; ++at) {
      const float sum = ToFloat(ToBf16(SumOf(peers.ranks, round, at)));
      wrong += residual[static_cast<size_t>(at)] != 1.0f + sum;
    }
  }
  return wrong;
}

class AllReduceRanks : public testing::TestWithParam<int> {};

TEST_P(AllReduceRanks, AgreeInEveryRoundOfEveryKindAndSize) {
  Group group(GetParam());
  std::atomic<int> wrong = 0;
  group.OnEach([&](int rank) {
    emulator::SetThreadOrder(rank % 2 == 0 ? emulator::ThreadOrder::kForward
                                           : emulator::ThreadOrder::kReverse);
    std::mt19937 random(static_cast<unsigned>(rank));
    const PeerGroup peers = group.Of(rank);
    // A block's part of one round is another block's part of the next.
    const std::vector<std::function<int(int)>> kinds = {
        [&](int round) { return AllReduceOnce<float>(peers, round, 1, 0); },
        [&](int round) { return AllReduceOnce<Bf16>(peers, round, 8191, 0); },
        [&](int round) { return AllReduceNormOnce(peers, round, 3, 64, {}); },
        [&](int round) { return AllReduceOnce<Half>(peers, round, 4097, 1); },
        [&](int round) {
          return AllReduceNormOnce(peers, round, 5, 4160, {4, 0, 2});
        },
        [&](int round) { return AllReduceOnce<float>(peers, round, kBufferBytes / 4, 3); },
        [&](int round) { return AllReduceNormOnce(peers, round, 1, 64, {}); },
    };
    for (int round = 0; round < 3 * static_cast<int>(kinds.size()); ++round) {
      if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
      wrong += kinds[static_cast<size_t>(round) % kinds.size()](round);
    }
    emulator::SetThreadOrder(emulator::ThreadOrder::kForward);
  });
  EXPECT_EQ(wrong, 0);
  for (int rank = 0; rank < GetParam(); ++rank) EXPECT_EQ(group.stop(rank), 0u);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AllReduceRanks, testing::Values(1, 2, 3, 8));

// More rows than blocks, each block with several.
TEST(AllReduce, ABlockTakesSeveralRows) {
  Group group(2);
  std::atomic<int> wrong = 0;
  group.OnEach([&](int rank) {
    for (int round = 0; round < 2; ++round) {
      wrong += AllReduceNormOnce(group.Of(rank), round, 150, 64, {});
    }
  });
  EXPECT_EQ(wrong, 0);
}

// Numbers whose sum depends on the order.
TEST(AllReduce, SumsAreThoseOfTheRanksOrderInF32OnEveryRank) {
  Group group(4);
  constexpr int64_t kCount = 1000;
  const auto input = [](int rank, int64_t i) {
    return std::ldexp(1.0f + static_cast<float>(i % 97) / 97.0f,
                      (rank * 7 + static_cast<int>(i)) % 25);
  };
  std::vector<std::vector<float>> sums(4, std::vector<float>(kCount));
  group.OnEach([&](int rank) {
    for (int64_t i = 0; i < kCount; ++i) sums[rank][i] = input(rank, i);
    AllReduce({group.Of(rank), sums[rank].data(), DType::kF32, kCount}, nullptr);
  });
  int depends = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const float forward = ((input(0, i) + input(1, i)) + input(2, i)) + input(3, i);
    const float backward = ((input(3, i) + input(2, i)) + input(1, i)) + input(0, i);
    depends += forward != backward;
    for (int rank = 0; rank < 4; ++rank) ASSERT_EQ(sums[rank][i], forward) << rank << ", " << i;
  }
  EXPECT_GT(depends, 100) << "the test shows nothing";
}

TEST(AllReduce, ARoundNumberThatWrapsAroundIsNoDifference) {
  Group group(2);
  for (int rank = 0; rank < 2; ++rank) {
    uint32_t* const rounds = PeerRounds(group.Of(rank).slabs[rank]);
    std::fill(rounds, rounds + kAllReduceBlocks, 0xfffffffeu);
    for (int block = 0; block < kAllReduceBlocks; ++block) {
      for (int from = 0; from < 2; ++from) {
        *PeerFlag(group.Of(rank).slabs[rank], block, from) = RoundFlag(1, 0xfffffffeu);
      }
    }
  }
  std::atomic<int> wrong = 0;
  group.OnEach([&](int rank) {
    for (int round = 0; round < 5; ++round) {
      wrong += AllReduceOnce<Bf16>(group.Of(rank), round, 100, 0);
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(AllReduce, ARankThatDoesNotComeIsWaitedForUntilTheDeadlineOnceAndNamed) {
  Group group(3, 1'000'000'000);
  // Rank 2 has come, rank 1 has not.
  const PeerGroup peers = group.Of(0);
  *PeerFlag(peers.slabs[0], 0, 2) = RoundFlag(1, 1);
  float value = 5;
  AllReduce({peers, &value, DType::kF32, 1}, nullptr);
  EXPECT_EQ(group.stop(0), kPeerIsLate + 1);
  EXPECT_EQ(value, 5) << "no result";
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) AllReduce({peers, &value, DType::kF32, 1}, nullptr);
  // Of five seconds, were it waited for each time.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(3));
}

TEST(AllReduce, AnAbortEndsAWaitAndTheNextEpochStartsAfresh) {
  Group group(2);
  std::thread waits([&] {
    float value = 1;
    AllReduce({group.Of(0), &value, DType::kF32, 1}, nullptr);
    std::vector<float> residual(64, 3.0f), weight(64, 1.0f);
    const std::vector<uint16_t> branch(64, 0x3f80);
    std::vector<uint16_t> out(64);
    AllReduceNorm({group.Of(0),
                   {residual.data(), branch.data(), nullptr, weight.data(), 1e-5f, out.data(),
                    nullptr, 1, 64}},
                  nullptr);
    EXPECT_EQ(residual[0], 3.0f) << "no result";
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  group.Stop(0);
  waits.join();
  EXPECT_EQ(group.stop(0), kPeersStopped);
  // Rank 0 has told rank 1 of two rounds that never ended: they count for nothing later.
  group.BeginEpoch();
  std::atomic<int> wrong = 0;
  group.OnEach([&](int rank) {
    if (rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    for (int round = 0; round < 4; ++round) {
      wrong += AllReduceOnce<float>(group.Of(rank), round, 300, 0);
    }
  });
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace rempart::kernels::cuda
