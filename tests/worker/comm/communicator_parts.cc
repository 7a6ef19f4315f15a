// SPDX-License-Identifier: Apache-2.0
// The contract of Communicator where a group is cut into parts that send each other messages.
#include <gmock/gmock.h>

#include "tests/worker/comm/communicator_contract.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

// Two parts that do different numbers of collectives, messages from one to the other, and
// collectives of the whole: none disturbs another.
TEST_P(CommunicatorContract, PartsKeepInStepBesideEachOtherAndTheWhole) {
  Group group = Make(4);
  const std::vector<int64_t> halves = {0, 8, 16};
  const std::vector<int64_t> of_the_last = {0, 0, 0, 8, 16};
  OnAllRanks(group, [&](Communicator& whole) {
    const int first = whole.rank() / 2 * 2;
    const std::unique_ptr<Communicator> part = whole.Part(first, 2);
    ASSERT_EQ(part->rank(), whole.rank() - first);
    ASSERT_EQ(part->size(), 2);
    for (int64_t round = 0; round < 200; ++round) {
      for (int i = 0; i <= 2 * first; ++i) {
        int64_t said[2] = {-1, -1};
        said[part->rank()] = round * 100 + whole.rank();
        ASSERT_TRUE(part->AllGather({said, 1, 16, halves}).ok());
        ASSERT_EQ(said[0], round * 100 + first);
        ASSERT_EQ(said[1], round * 100 + first + 1);
      }
      int64_t passed = round + 1000 * whole.rank();
      if (first == 0) {
        ASSERT_TRUE(whole.Send(&passed, 8, whole.rank() + 2).ok());
      } else {
        ASSERT_TRUE(whole.Receive(&passed, 8, whole.rank() - 2).ok());
        ASSERT_EQ(passed, round + 1000 * (whole.rank() - 2));
      }
      int64_t result[2] = {whole.rank(), whole.rank()};
      ASSERT_TRUE(whole.Gather({result, 1, 16, of_the_last}, 0).ok());
      ASSERT_EQ(result[0], whole.rank() == 0 ? 2 : whole.rank());
      ASSERT_EQ(result[1], whole.rank() == 0 ? 3 : whole.rank());
    }
  });
}

TEST_P(CommunicatorContract, EveryCollectiveOfAPartStaysInIt) {
  constexpr int64_t kCount = 40000;
  Group group = Make(3);
  OnAllRanks(group, [&](Communicator& whole) {
    if (whole.rank() == 0) return;
    const std::unique_ptr<Communicator> part = whole.Part(1, 2);
    std::vector<float> sums(kCount);
    for (int64_t i = 0; i < kCount; ++i) sums[i] = Value(whole.rank(), i);
    ASSERT_TRUE(part->AllReduceSum(sums.data(), kCount).ok());
    for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(sums[i], Value(1, i) + Value(2, i));
    int said[2] = {whole.rank(), whole.rank()};
    ASSERT_TRUE(part->Broadcast(said, sizeof(said), 1).ok());
    ASSERT_EQ(said[1], 2);
    const std::vector<int64_t> offsets = {0, 4, 8};
    said[part->rank()] = 10 + whole.rank();
    ASSERT_TRUE(part->Gather({said, 1, 8, offsets}, 1).ok());
    if (part->rank() == 1) {
      ASSERT_EQ(said[0], 11);
      ASSERT_EQ(said[1], 12);
    }
    ASSERT_TRUE(part->Barrier().ok());
    char word = static_cast<char>('a' + part->rank());
    ASSERT_TRUE((part->rank() == 0 ? part->Send(&word, 1, 1) : part->Receive(&word, 1, 0)).ok());
    ASSERT_EQ(word, 'a');
  });
  EXPECT_EQ(group[0]->progress().collectives, 0);
}

TEST_P(CommunicatorContract, APartThatFailsNamesTheRankAsTheWholeCountsItAndEndsTheWhole) {
  Group group = Make(4);
  absl::Status result;
  std::thread waiting([&] { result = group[2]->Part(2, 2)->Barrier(); });
  AwaitWaiting(*group[2], {3});
  group[3].reset();
  waiting.join();
  EXPECT_THAT(std::string(result.message()), HasSubstr("rank 3 is gone"));
  EXPECT_EQ(group[2]->progress().blamed_rank, 3);
  for (int rank = 0; rank < 2; ++rank) {
    while (group[rank]->status().ok()) std::this_thread::yield();
    EXPECT_FALSE(group[rank]->Part(0, 2)->Barrier().ok());
  }
}

TEST_P(CommunicatorContract, AbortFromAnotherThreadEndsAReceiveOnAllRanks) {
  Group group = Make(3);
  std::vector<absl::Status> results(3);
  std::vector<std::thread> waiting;
  const auto sender = [](int rank) { return (rank + 1) % 3; };
  for (int rank = 0; rank < 3; ++rank) {
    waiting.emplace_back([&, rank] {
      char data[8];
      results[rank] = group[rank]->Receive(data, sizeof(data), sender(rank));
    });
  }
  for (int rank = 0; rank < 3; ++rank) {
    AwaitWaiting(*group[rank], {sender(rank)}, Activity::kReceive);
  }
  group[2]->Abort(absl::CancelledError("the operator ended epoch 7"), -1);
  for (std::thread& thread : waiting) thread.join();
  EXPECT_EQ(results[2].message(), "the operator ended epoch 7");
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_THAT(std::string(results[rank].message()), HasSubstr("ended the epoch"));
    EXPECT_FALSE(group[rank]->Send("x", 1, 2).ok());
  }
}

TEST_P(CommunicatorContract, AMessageThatDoesNotComeMissesItsDeadline) {
  CommunicatorOptions options;
  options.timeout = std::chrono::milliseconds(50);
  Group group = Make(2, options);
  char data[8];
  const absl::Status missed = group[0]->Receive(data, sizeof(data), 1);
  EXPECT_EQ(missed.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(missed.message()), HasSubstr("nothing from rank 1 within 50 ms"));
  EXPECT_EQ(group[0]->progress().blamed_rank, 1);
}

TEST_P(CommunicatorContract, WhatASenderSentArrivesAfterItHasLeft) {
  Group group = Make(2);
  std::thread leaving([&] {
    EXPECT_TRUE(group[1]->Send("first", 5, 0).ok());
    group[1].reset();
  });
  char data[5];
  EXPECT_TRUE(group[0]->Receive(data, 5, 1).ok());
  EXPECT_EQ(std::string(data, 5), "first");
  const absl::Status status = group[0]->Receive(data, 5, 1);
  leaving.join();
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 is gone"));
  EXPECT_EQ(group[0]->progress().blamed_rank, 1);
}

}  // namespace
}  // namespace rempart::worker
