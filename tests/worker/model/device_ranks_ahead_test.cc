// SPDX-License-Identifier: Apache-2.0
// Ranks that share a stage begin a step while the one before runs: what rank 0 has drawn passes
// from device to device. Over emulated devices that have done nothing until they are waited for, so
// that what is read or overwritten too early shows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/worker/comm/device_ranks.h"
#include "tests/worker/model/device_part.h"
#include "worker/comm/host_collectives.h"
#include "worker/comm/nccl_library.h"
#include "worker/comm/one_shot.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr int kSequences = 3;

// By step the sequences that take part, in the order of the batch: a prompt that comes among
// decodes, other orders, and one that stays away and comes back with a token that is known by then.
const std::vector<std::vector<int>>& Steps() {
  static const std::vector<std::vector<int>> steps = {{0, 1}, {1, 0},    {2, 0, 1}, {1, 2, 0},
                                                      {2, 1}, {0, 2, 1}, {1, 0, 2}, {0, 1, 2}};
  return steps;
}

// The requests as one rank sees them. Rank 0 alone knows how to draw.
class Decoding {
 public:
  Decoding(DeviceTransformer& transformer, Communicator& group)
      : transformer_(transformer), group_(group) {
    const int lengths[kSequences] = {7, 5, 6};
    for (int i = 0; i < kSequences; ++i) {
      tables_[i] = Table(i);
      for (int j = 0; j < lengths[i]; ++j) {
        tokens_[i].push_back(
            static_cast<int32_t>((i * 53 + j * 37 + 11) % transformer.config().vocabulary));
      }
    }
    params_[0] = {.temperature = 0.9f, .seed = 4, .top_logprobs = 0};
    params_[1] = {.temperature = 1.1f,
                  .top_p = 0.9f,
                  .presence_penalty = 0.5f,
                  .repetition_penalty = 1.3f,
                  .seed = 9};
    params_[2] = {.temperature = 0};
  }

  // All that was drawn, step by step; of other ranks than 0 nothing. `deferring` is a device that
  // works when it is waited for, or null.
  std::vector<DrawnToken> Run(bool ahead, const EmulatedDevice* deferring = nullptr) {
    for (size_t step = 0; step < Steps().size(); ++step) {
      const absl::StatusOr<bool> started = Start(step, ahead);
      EXPECT_TRUE(started.ok()) << started.status();
      if (!started.ok()) return drawn_;
      EXPECT_EQ(*started, is_first()) << "rank 0 draws all";
      if (!ahead || step > 0) Finish(ahead ? step - 1 : step);
      if (deferring != nullptr && step > 0) {
        EXPECT_GT(deferring->pending(), 0) << "the step behind was waited for, too";
      }
    }
    if (ahead) Finish(Steps().size() - 1);
    return drawn_;
  }

  // Reads its batch, which is gone when it returns.
  absl::StatusOr<bool> Start(size_t step, bool ahead) {
    StepBatch batch;
    std::array<SliceSampling, kSequences> samplings;
    std::array<std::vector<TokenCount>, kSequences> counts;
    static constexpr int32_t kUnknown = 0;
    for (const int i : Steps()[step]) {
      SequenceSlice& slice = batch.slices.emplace_back();
      const bool follows = ahead && step > 0 && places_[i].first == static_cast<int>(step) - 1;
      if (follows) {
        slice.token_ids = absl::MakeConstSpan(&kUnknown, 1);
        slice.follows = places_[i].second;
      } else {
        slice.token_ids = absl::MakeConstSpan(tokens_[i]).subspan(computed_[i]);
      }
      slice.first_position = computed_[i];
      slice.block_table = tables_[i];
      slice.wants_logits = true;
      computed_[i] += static_cast<int32_t>(slice.token_ids.size());
      places_[i] = {static_cast<int>(step), static_cast<int32_t>(batch.slices.size()) - 1};
      if (!is_first()) continue;
      if (params_[i].has_penalties()) counts[i] = CountsOf(i);
      samplings[i] = {&params_[i], counts[i], generated_[i]++};
      slice.sampling = &samplings[i];
    }
    return transformer_.Start(batch, true);
  }

  void Finish(size_t step) {
    const std::vector<int>& sequences = Steps()[step];
    std::vector<DrawnToken> drawn(is_first() ? sequences.size() : 0);
    const absl::Status status = transformer_.Finish({}, absl::MakeSpan(drawn));
    EXPECT_TRUE(status.ok()) << status;
    std::vector<int32_t> ids(sequences.size());
    for (size_t i = 0; i < drawn.size(); ++i) ids[i] = drawn[i].token_id;
    // As the leader's next step tells them.
    EXPECT_TRUE(group_.Broadcast(ids.data(), static_cast<int64_t>(4 * ids.size()), 0).ok());
    for (size_t i = 0; i < ids.size(); ++i) tokens_[sequences[i]].push_back(ids[i]);
    drawn_.insert(drawn_.end(), drawn.begin(), drawn.end());
  }

 private:
  bool is_first() const { return group_.rank() == 0; }
  // Of what is known.
  std::vector<TokenCount> CountsOf(int sequence) const {
    std::map<int32_t, int32_t> counts;
    for (size_t i = 0; i < tokens_[sequence].size(); ++i) {
      counts[tokens_[sequence][i]] += i < kPromptOf1 ? 0 : 1;
    }
    std::vector<TokenCount> all;
    for (const auto& [id, count] : counts) all.push_back({id, count});
    return all;
  }
  static constexpr size_t kPromptOf1 = 5;  // the sequence that has penalties

  DeviceTransformer& transformer_;
  Communicator& group_;
  std::array<std::vector<int32_t>, kSequences> tokens_, tables_;
  std::array<SamplingParams, kSequences> params_;
  std::array<int32_t, kSequences> computed_ = {};
  std::array<int64_t, kSequences> generated_ = {};
  std::array<std::pair<int, int32_t>, kSequences> places_ = {};  // step and place of the last draw
  std::vector<DrawnToken> drawn_;
};

bool LoadAll(const RandomModel& model, int size, DeviceRanks& ranks, std::vector<Part>& parts) {
  if (!ranks.all_connected()) return false;
  for (int rank = 0; rank < size; ++rank) {
    const absl::Status loaded =
        Load(model, {.rank = rank, .size = size}, *ranks[rank].device, parts[rank]);
    EXPECT_TRUE(loaded.ok()) << loaded;
    if (!loaded.ok()) return false;
    parts[rank].transformer->SetCommunicator(ranks[rank].communicator.get());
  }
  return true;
}

RandomModel ModelFor(int size) {
  return size == 3 ? RandomModel(SmallConfig(6, 3, 32, 96, 192, 200), kernels::DType::kF32, 7)
                   : RandomModel(SmallConfig(4, 2, 64, 128, 256, 333), kernels::DType::kQ8_0, 7);
}

void ExpectTheSameAhead(int size, CollectiveLibrary& library) {
  const RandomModel model = ModelFor(size);
  DeviceRanks ranks(library, size, size, {});
  std::vector<Part> parts(size);
  ASSERT_TRUE(LoadAll(model, size, ranks, parts));
  std::vector<DrawnToken> expected, ahead;
  ranks.OnEach([&](int rank) {
    EmulatedDevice& device = *ranks[rank].device;
    const auto run = [&](bool is_ahead) {
      return Decoding(*parts[rank].transformer, ranks.host(rank))
          .Run(is_ahead, is_ahead ? &device : nullptr);
    };
    const std::vector<DrawnToken> one_by_one = run(false);
    device.Defer();
    const int64_t allocations = device.allocations(), waits = device.waits();
    const std::vector<DrawnToken> drawn = run(true);
    EXPECT_EQ(device.allocations(), allocations);
    EXPECT_EQ(device.waits(), waits + static_cast<int64_t>(Steps().size()));
    if (rank == 0) expected = one_by_one, ahead = drawn;
    parts[rank].transformer->SetCommunicator(nullptr);
  });
  ASSERT_EQ(expected.size(), 21u);
  ASSERT_EQ(ahead.size(), expected.size());
  std::set<int32_t> tokens;
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(ahead[i].is_drawn);
    EXPECT_EQ(ahead[i].token_id, expected[i].token_id) << i;
    EXPECT_EQ(ahead[i].logprob, expected[i].logprob) << i;
    tokens.insert(expected[i].token_id);
  }
  EXPECT_GT(tokens.size(), 10u) << "the test shows nothing";
}

class RanksAhead : public testing::TestWithParam<int> {};

TEST_P(RanksAhead, DrawTheSame) {
  HostCollectives library;
  ExpectTheSameAhead(GetParam(), library);
}

TEST_P(RanksAhead, DrawTheSameWithSumsInOneShot) {
  OneShotOptions options;
  options.use = OneShotUse::kAlways;
  options.buffer_bytes = 20 * 128 * 2;
  options.measure_time = std::chrono::milliseconds(0);
  OneShot library(std::make_unique<HostCollectives>(), options);
  ExpectTheSameAhead(GetParam(), library);
}

TEST_P(RanksAhead, DrawTheSameByNccl) {
  auto nccl = Nccl::Load(REMPART_FAKE_NCCL);
  ASSERT_TRUE(nccl.ok()) << nccl.status();
  ExpectTheSameAhead(GetParam(), **nccl);
}

INSTANTIATE_TEST_SUITE_P(Sizes, RanksAhead, testing::Values(2, 3, 4));

// Both steps end with the communicator's error, and nothing of them is left for the next epoch.
TEST(RanksAheadTest, ALostRankEndsBothStepsAndTheNextEpochComputesAsTheFirst) {
  const RandomModel model = ModelFor(2);
  HostCollectives library;
  DeviceRanks ranks(library, 2, 2, {});
  std::vector<Part> parts(2);
  ASSERT_TRUE(LoadAll(model, 2, ranks, parts));
  std::vector<DrawnToken> expected, again;
  std::barrier both_started(2);
  ranks.OnEach([&](int rank) {
    DeviceTransformer& transformer = *parts[rank].transformer;
    const std::vector<DrawnToken> drawn = Decoding(transformer, ranks.host(rank)).Run(true);
    if (rank == 0) expected = drawn;
    ranks[rank].device->Defer();
    Decoding lost(transformer, ranks.host(rank));
    EXPECT_TRUE(ranks.host(rank).Barrier().ok());
    EXPECT_TRUE(lost.Start(0, true).ok());
    EXPECT_TRUE(lost.Start(1, true).ok());
    both_started.arrive_and_wait();
    ranks[rank].communicator->Abort(absl::UnavailableError("a rank is lost"));
    if (rank == 0) {
      EXPECT_EQ(transformer.Finish({}, {}).message(), "a rank is lost");
      EXPECT_EQ(transformer.Finish({}, {}).message(), "a rank is lost");
      EXPECT_EQ(lost.Start(2, true).status().message(), "a rank is lost");
    }
    if (rank == 1) {
      EXPECT_GT(ranks[rank].device->pending(), 0) << "it has not waited";
    }
    transformer.SetCommunicator(nullptr);
    EXPECT_EQ(ranks[rank].device->pending(), 0) << "what holds the communicator that goes";
    const int64_t waits = ranks[rank].device->waits();
    EXPECT_EQ(transformer.Finish({}, {}).message(), "no step runs");
    EXPECT_EQ(ranks[rank].device->waits(), waits);
  });
  auto hosts = CreateInProcess(2, {});
  ranks.OnEach([&](int rank) {
    DeviceTransformer& transformer = *parts[rank].transformer;
    auto made = library.Connect(*ranks[rank].device, {"", hosts[rank].get()}, {}, {});
    ASSERT_TRUE(made.ok()) << made.status();
    transformer.SetCommunicator(made->get());
    const std::vector<DrawnToken> drawn = Decoding(transformer, *hosts[rank]).Run(true);
    if (rank == 0) again = drawn;
    transformer.SetCommunicator(nullptr);
  });
  ASSERT_EQ(again.size(), 21u);
  for (size_t i = 0; i < again.size(); ++i) EXPECT_EQ(again[i].token_id, expected[i].token_id) << i;
}

// NCCL wants a collective to be in a graph on all ranks or on none. Rank 0 alone knows whether a
// step draws.
TEST(RanksAheadTest, AllRecordTheSameStepsWhateverRankZeroDraws) {
  const RandomModel model = ModelFor(2);
  HostCollectives library;
  DeviceRanks ranks(library, 2, 2, {});
  std::vector<Part> parts(2);
  ASSERT_TRUE(LoadAll(model, 2, ranks, parts));
  std::array<std::vector<int64_t>, 2> graphs;
  ranks.OnEach([&](int rank) {
    DeviceTransformer& transformer = *parts[rank].transformer;
    const std::vector<int32_t> table = Table(0);
    const SamplingParams greedy = {.temperature = 0};
    std::vector<float> logits(transformer.config().vocabulary);
    for (const bool draws : {false, true, false, true, true}) {
      const SliceSampling sampling = {&greedy, {}, 0};
      const int32_t id = 3;
      StepBatch batch;
      batch.slices = {
          {{&id, 1}, static_cast<int32_t>(graphs[rank].size()), table, /*wants_logits=*/true}};
      if (draws && rank == 0) batch.slices[0].sampling = &sampling;
      std::vector<DrawnToken> drawn(1);
      const absl::Status status =
          transformer.Forward(batch, absl::MakeSpan(logits), absl::MakeSpan(drawn));
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(drawn[0].is_drawn, draws && rank == 0);
      graphs[rank].push_back(ranks[rank].device->graphs());
    }
    transformer.SetCommunicator(nullptr);
  });
  EXPECT_EQ(graphs[0], (std::vector<int64_t>{0, 1, 1, 1, 1}));
  EXPECT_EQ(graphs[1], graphs[0]);
}

// Others than rank 0 know no draws, but what there is to follow all know.
TEST(RanksAheadTest, WhatNobodyCanFollowAllRefuseAndWhatWasNotDrawnRankZeroAlone) {
  const RandomModel model = ModelFor(2);
  HostCollectives library;
  DeviceRanks ranks(library, 2, 2, {});
  std::vector<Part> parts(2);
  ASSERT_TRUE(LoadAll(model, 2, ranks, parts));
  ranks.OnEach([&](int rank) {
    DeviceTransformer& transformer = *parts[rank].transformer;
    const std::vector<int32_t> ids = {3}, table = Table(0);
    StepBatch batch;
    batch.slices = {{ids, 0, table, true}};
    std::vector<float> logits(transformer.config().vocabulary);
    ASSERT_TRUE(transformer.Start(batch, true).ok());
    batch.slices[0].follows = 1;
    const absl::Status refused = transformer.Start(batch, true).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("no token 1 was drawn"));
    batch.slices[0].follows = 0;
    if (rank == 0) {
      EXPECT_EQ(transformer.Start(batch, true).status().code(),
                absl::StatusCode::kFailedPrecondition);
    }
    EXPECT_TRUE(transformer.Finish(absl::MakeSpan(logits), {}).ok());
    transformer.SetCommunicator(nullptr);
  });
}

}  // namespace
}  // namespace rempart::worker
