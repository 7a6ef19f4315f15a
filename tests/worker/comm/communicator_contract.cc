// SPDX-License-Identifier: Apache-2.0
#include "tests/worker/comm/communicator_contract.h"

#include <gmock/gmock.h>

#include <cstring>
#include <latch>
#include <numeric>

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

std::vector<int64_t> Offsets(std::vector<int64_t> sizes) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
  return offsets;
}

TEST_P(CommunicatorContract, AllReduceIsTheSameSumOnAllRanksAndEveryTime) {
  CommunicatorOptions options = Patient();
  // So that all algorithms are seen.
  options.two_hops_from_bytes = 64;
  options.ring_from_bytes = 4096;
  for (const int size : {1, 2, 3, 4}) {
    Group group = Make(size, options);
    for (const int64_t count : {0, 1, 3, 17, 1023, 1024, 70001}) {
      std::vector<std::vector<float>> results(size), again(size);
      OnAllRanks(group, [&](Communicator& rank) {
        for (auto* each : {&results, &again}) {
          std::vector<float>& values = (*each)[rank.rank()];
          for (int64_t i = 0; i < count; ++i) values.push_back(Value(rank.rank(), i));
          const absl::Status status = rank.AllReduceSum(values.data(), count);
          ASSERT_TRUE(status.ok()) << status;
        }
      });
      for (int rank = 0; rank < size; ++rank) {
        EXPECT_EQ(results[rank], results[0]) << size << " ranks, " << count;
        EXPECT_EQ(again[rank], results[0]) << size << " ranks, " << count;
      }
      for (int64_t i = 0; i < count; ++i) {
        double sum = 0, magnitude = 0;
        for (int rank = 0; rank < size; ++rank) {
          sum += Value(rank, i);
          magnitude += std::abs(Value(rank, i));
        }
        ASSERT_NEAR(results[0][i], sum, 1e-6 * magnitude + 1e-30);
      }
    }
  }
}

TEST_P(CommunicatorContract, AllGatherBringsUnevenSharesOfRows) {
  struct Case {
    std::vector<int64_t> sizes;
    int64_t rows;
    int64_t padding;
  };
  const Case cases[] = {{{5}, 2, 3},           {{0, 0}, 1, 0},
                        {{1, 0}, 1, 0},        {{0, 7}, 3, 1},
                        {{4096, 4096}, 1, 0},  {{100, 33, 7}, 5, 9},
                        {{0, 65537, 1}, 4, 0}, {{300000, 5, 0, 1}, 3, 64}};
  for (const Case& each : cases) {
    const std::vector<int64_t> offsets = Offsets(each.sizes);
    const int64_t stride = offsets.back() + each.padding;
    const auto byte = [&](int64_t row, int64_t i) {
      return static_cast<uint8_t>(row * 7 + i * 13);
    };
    Group group = Make(static_cast<int>(each.sizes.size()));
    OnAllRanks(group, [&](Communicator& rank) {
      std::vector<uint8_t> data(each.rows * stride + 1, 0xee), expected = data;
      for (int64_t row = 0; row < each.rows; ++row) {
        for (int64_t i = 0; i < offsets.back(); ++i) {
          expected[row * stride + i] = byte(row, i);
          const bool own = i >= offsets[rank.rank()] && i < offsets[rank.rank() + 1];
          if (own) data[row * stride + i] = byte(row, i);
        }
      }
      const absl::Status status = rank.AllGather({data.data(), each.rows, stride, offsets});
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(data, expected) << "rank " << rank.rank();
    });
  }
}

TEST_P(CommunicatorContract, AllGatherMayHaveOtherStridesOnOtherRanks) {
  Group group = Make(2);
  const std::vector<int64_t> offsets = {0, 3, 5};
  OnAllRanks(group, [&](Communicator& rank) {
    const int64_t stride = rank.rank() == 0 ? 5 : 11;
    std::vector<uint8_t> data(4 * stride, 0);
    for (int row = 0; row < 4; ++row) {
      for (int64_t i = offsets[rank.rank()]; i < offsets[rank.rank() + 1]; ++i) {
        data[row * stride + i] = static_cast<uint8_t>(10 * row + i);
      }
    }
    ASSERT_TRUE(rank.AllGather({data.data(), 4, stride, offsets}).ok());
    for (int row = 0; row < 4; ++row) {
      for (int i = 0; i < 5; ++i) EXPECT_EQ(data[row * stride + i], 10 * row + i);
    }
  });
}

TEST_P(CommunicatorContract, GatherReachesTheRootAlone) {
  Group group = Make(3);
  const std::vector<int64_t> offsets = {0, 2, 2, 6};
  for (int root = 0; root < 3; ++root) {
    OnAllRanks(group, [&](Communicator& rank) {
      std::vector<uint8_t> data(12, 0);
      for (int row = 0; row < 2; ++row) {
        for (int64_t i = offsets[rank.rank()]; i < offsets[rank.rank() + 1]; ++i) {
          data[row * 6 + i] = static_cast<uint8_t>(1 + row * 6 + i);
        }
      }
      const std::vector<uint8_t> before = data;
      ASSERT_TRUE(rank.Gather({data.data(), 2, 6, offsets}, root).ok());
      if (rank.rank() != root) {
        EXPECT_EQ(data, before);
        return;
      }
      std::vector<uint8_t> all(12);
      std::iota(all.begin(), all.end(), 1);
      EXPECT_EQ(data, all);
    });
  }
}

TEST_P(CommunicatorContract, BroadcastCopiesTheRoot) {
  for (const int size : {1, 2, 4}) {
    Group group = Make(size);
    for (const int64_t bytes : {0, 1, 4097, 300001}) {
      for (int root = 0; root < size; ++root) {
        OnAllRanks(group, [&](Communicator& rank) {
          std::vector<uint8_t> data(bytes, static_cast<uint8_t>(rank.rank()));
          for (int64_t i = 0; rank.rank() == root && i < bytes; ++i) data[i] = i * 31 % 251;
          ASSERT_TRUE(rank.Broadcast(data.data(), bytes, root).ok());
          for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], i * 31 % 251);
        });
      }
    }
  }
}

TEST_P(CommunicatorContract, MessagesBetweenTwoRanksDoNotDisturbTheOthers) {
  Group group = Make(3);
  OnAllRanks(group, [&](Communicator& rank) {
    std::string text(100000, 'x');
    for (int i = 0; i < 5; ++i) {
      if (rank.rank() == 0) {
        std::fill(text.begin(), text.end(), static_cast<char>('a' + i));
        ASSERT_TRUE(rank.Send(text.data(), text.size(), 2).ok());
      } else if (rank.rank() == 2) {
        ASSERT_TRUE(rank.Receive(text.data(), text.size(), 0).ok());
        EXPECT_EQ(text, std::string(100000, static_cast<char>('a' + i)));
      }
      ASSERT_TRUE(rank.Barrier().ok());
    }
  });
}

TEST_P(CommunicatorContract, ManyRoundsOfEverythingKeepInStep) {
  for (const int size : {2, 3}) {
    Group group = Make(size);
    OnAllRanks(group, [&](Communicator& rank) {
      std::vector<int64_t> offsets(size + 1);
      for (int i = 0; i <= size; ++i) offsets[i] = 8 * i;
      for (int64_t round = 0; round < 2000; ++round) {
        std::vector<int64_t> said(size, -1);
        said[rank.rank()] = round * 100 + rank.rank();
        ASSERT_TRUE(rank.AllGather({said.data(), 1, 8 * size, offsets}).ok());
        for (int i = 0; i < size; ++i) ASSERT_EQ(said[i], round * 100 + i);
        float sum = static_cast<float>(rank.rank() + 1);
        ASSERT_TRUE(rank.AllReduceSum(&sum, 1).ok());
        ASSERT_EQ(sum, size * (size + 1) / 2);
        if (round % 100 == 0) {
          ASSERT_TRUE(rank.Barrier().ok());
        }
      }
      EXPECT_GE(rank.progress().collectives, 4000);
      EXPECT_EQ(rank.progress().activity, Activity::kIdle);
    });
  }
}

TEST_P(CommunicatorContract, ProgressTellsWhosePartHasNotCome) {
  Group group = Make(3);
  std::thread zero([&] { EXPECT_TRUE(group[0]->Barrier().ok()); });
  AwaitWaiting(*group[0], {1, 2});
  std::thread one([&] { EXPECT_TRUE(group[1]->Barrier().ok()); });
  AwaitWaiting(*group[0], {2});
  AwaitWaiting(*group[1], {2});
  EXPECT_EQ(group[0]->progress().collectives, 1);
  EXPECT_EQ(group[2]->progress().collectives, 0);
  EXPECT_TRUE(group[2]->Barrier().ok());
  zero.join();
  one.join();
  EXPECT_TRUE(group[0]->progress().waiting_for_ranks.empty());
}

TEST_P(CommunicatorContract, AbortFromAnotherThreadEndsTheWaitOfAllRanks) {
  Group group = Make(3);
  std::vector<absl::Status> results(2);
  std::thread zero([&] { results[0] = group[0]->Barrier(); });
  std::thread one([&] { results[1] = group[1]->Barrier(); });
  AwaitWaiting(*group[0], {2});
  AwaitWaiting(*group[1], {2});
  group[1]->Abort(absl::CancelledError("the operator ended epoch 7"), 2);
  zero.join();
  one.join();
  EXPECT_EQ(results[1].message(), "the operator ended epoch 7");
  EXPECT_EQ(results[0].code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(results[0].message()),
              HasSubstr("rank 1 ended the epoch and blames rank 2"));
  EXPECT_EQ(group[0]->progress().blamed_rank, 2);
  EXPECT_EQ(group[1]->progress().blamed_rank, 2);
  // The rank that was not in a collective learns it too, and nobody can go on.
  while (group[2]->status().ok()) std::this_thread::yield();
  for (auto& communicator : group) {
    EXPECT_FALSE(communicator->Barrier().ok());
    EXPECT_FALSE(communicator->status().ok());
  }
}

TEST_P(CommunicatorContract, AMissedDeadlineNamesWhoDidNotCome) {
  CommunicatorOptions options;
  options.timeout = std::chrono::milliseconds(50);
  Group group = Make(3, options);
  std::vector<absl::Status> results(2);
  std::thread one([&] {
    // Comes in time, so that rank 0 waits for rank 2 alone.
    results[1] = group[1]->Barrier();
  });
  results[0] = group[0]->Barrier();
  one.join();
  // Whoever comes first in missing the deadline ends it for both.
  const bool first = results[0].code() == absl::StatusCode::kDeadlineExceeded;
  const absl::Status& missed = results[first ? 0 : 1];
  EXPECT_EQ(missed.code(), absl::StatusCode::kDeadlineExceeded) << results[0] << results[1];
  EXPECT_THAT(std::string(missed.message()), HasSubstr("within 50 ms"));
  EXPECT_FALSE(results[first ? 1 : 0].ok());
  while (group[2]->status().ok()) std::this_thread::yield();
  EXPECT_FALSE(group[2]->Barrier().ok());
}

TEST_P(CommunicatorContract, APeerThatLeavesDuringACollectiveIsNamed) {
  Group group = Make(2);
  std::thread leaving([&] {
    AwaitWaiting(*group[0], {1});
    group[1].reset();
  });
  const absl::Status status = group[0]->Barrier();
  leaving.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 is gone"));
  EXPECT_EQ(group[0]->progress().blamed_rank, 1);
}

TEST_P(CommunicatorContract, ARankMayLeaveAfterTheLastCollective) {
  for (int round = 0; round < 50; ++round) {
    Group group = Make(3);
    std::vector<std::thread> threads;
    for (auto& communicator : group) {
      threads.emplace_back([&communicator] {
        EXPECT_TRUE(communicator->Barrier().ok());
        communicator.reset();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_P(CommunicatorContract, RanksThatDivergeFailInsteadOfMixingUpTheirData) {
  {
    Group group = Make(2);
    OnAllRanks(group, [&](Communicator& rank) {
      std::vector<float> values(rank.rank() == 0 ? 10 : 11);
      EXPECT_FALSE(rank.AllReduceSum(values.data(), values.size()).ok());
    });
  }
  Group group = Make(2);
  std::vector<absl::Status> results(2);
  OnAllRanks(group, [&](Communicator& rank) {
    char data[8] = {};
    results[rank.rank()] = rank.rank() == 0 ? rank.Barrier() : rank.Broadcast(data, 8, 0);
  });
  EXPECT_FALSE(results[0].ok());
  EXPECT_FALSE(results[1].ok());
  const bool first = results[0].code() == absl::StatusCode::kInternal;
  EXPECT_THAT(std::string(results[first ? 0 : 1].message()), HasSubstr("the ranks have diverged"));
}

}  // namespace
}  // namespace rempart::worker
