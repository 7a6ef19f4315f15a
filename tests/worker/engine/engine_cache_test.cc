// SPDX-License-Identifier: Apache-2.0
// What the engine computes and what it need not: prefix cache, forks, shares of clients, short
// memory.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "tests/worker/engine/engine_bench.h"

namespace rempart::worker {
namespace {

TEST(EngineCache, WhatWasComputedForOneIsNotComputedForTheNext) {
  Bench bench;
  const std::string prefix(30, 'x');
  bench.engine.Submit(Greedy(1, prefix + "first", 8));
  bench.RunAll();
  const int64_t before = bench.model.token_count;
  bench.engine.Submit(Greedy(2, prefix + "other", 8));
  bench.RunAll();
  // Seven blocks of four tokens are full of the common prefix.
  EXPECT_EQ(bench.model.token_count - before, 35 - 28 + 7);
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids(prefix + "other"), 8));
  EXPECT_EQ((bench.answers[{1, 0}].prompt->cached_tokens), 0);
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 28);
  const EngineLoad load = bench.engine.load();
  EXPECT_EQ(load.prefix_lookups, 2u);
  EXPECT_EQ(load.prefix_queried_tokens, 70u);
  EXPECT_EQ(load.prefix_hit_tokens, 28u);
  EXPECT_GT(load.blocks_cached, 0);
}

// The first one still decodes when the others come.
TEST(EngineCache, OneThatRunsSharesItsBlocksWithThoseThatComeLaterButNotWithOtherClients) {
  Bench bench;
  const std::string prefix(40, 'x');
  const auto submit = [&](uint64_t id, const std::string& client) {
    SequenceRequest request = Greedy(id, prefix + std::to_string(id), 30);
    request.client = client;
    bench.engine.Submit(request);
    while (bench.answers[{id, 0}].tokens.empty()) ASSERT_TRUE(bench.engine.Step());
  };
  submit(1, "alice");
  const int32_t alone = bench.engine.load().blocks_used;
  submit(2, "alice");
  const int32_t shared = bench.engine.load().blocks_used;
  submit(3, "bob");
  const int32_t apart = bench.engine.load().blocks_used;
  EXPECT_EQ(bench.engine.load().running, 3) << "nobody has ended";
  EXPECT_GE(alone, 11);
  EXPECT_LT(shared - alone, 4) << "ten blocks of the second are the first one's";
  EXPECT_GE(apart - shared, 11) << "none of the third";
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 40);
  EXPECT_EQ((bench.answers[{3, 0}].prompt->cached_tokens), 0);
  bench.RunAll();
  for (uint64_t id = 1; id <= 3; ++id) {
    EXPECT_EQ((bench.answers[{id, 0}].tokens), Expected(Ids(prefix + std::to_string(id)), 30));
  }
}

// Hit statistics are of prompts as they came: one that is preempted and computed again, and one
// with many continuations, count once.
TEST(EngineCache, EachPromptIsCountedOnceInTheHitStatistics) {
  Bench bench({.max_sequences = 1});
  bench.engine.Submit(Greedy(1, std::string(16, 'x'), 20));
  for (int i = 0; i < 10; ++i) bench.engine.Step();
  SequenceRequest urgent = Greedy(2, std::string(16, 'x') + "yy", 4);
  urgent.priority = 1;
  bench.engine.Submit(urgent);
  bench.RunAll();
  ASSERT_EQ(bench.engine.load().preemptions, 1u);
  SequenceRequest many = Greedy(3, std::string(8, 'z'), 4);
  many.n = 4;
  bench.engine.Submit(many);
  bench.RunAll();
  const EngineLoad load = bench.engine.load();
  EXPECT_EQ(load.prefix_lookups, 3u);
  EXPECT_EQ(load.prefix_queried_tokens, 16u + 18 + 8);
  EXPECT_EQ(load.prefix_hit_tokens, 16u) << "of the second";
}

TEST(EngineCache, AConversationFindsItsOwnAnswerInTheCache) {
  Bench bench;
  bench.engine.Submit(Greedy(1, std::string(16, 'x'), 17));
  bench.RunAll();
  std::vector<int32_t> next = Ids(std::string(16, 'x'));
  const std::vector<int32_t>& said = bench.answers[{1, 0}].tokens;
  next.insert(next.end(), said.begin(), said.end());
  SequenceRequest request = Greedy(2, "", 5);
  request.prompt_ids = next;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 32);
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(next, 5));
}

TEST(EngineCache, AWholePromptInTheCacheStillGetsItsLogits) {
  Bench bench;
  for (uint64_t id = 1; id <= 2; ++id) {
    bench.engine.Submit(Greedy(id, "abcdefgh", 4));
    bench.RunAll();
    EXPECT_EQ((bench.answers[{id, 0}].tokens), Expected(Ids("abcdefgh"), 4));
  }
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 4) << "all full blocks but the last";
}

TEST(EngineCache, ClientsAndSaltsShareNothing) {
  Bench bench;
  const auto cached = [&](uint64_t id, const std::string& client, const std::string& salt) {
    SequenceRequest request = Greedy(id, std::string(40, 'x'), 4);
    request.client = client;
    request.cache_salt = salt;
    bench.engine.Submit(request);
    bench.RunAll();
    return bench.answers[{id, 0}].prompt->cached_tokens;
  };
  EXPECT_EQ(cached(1, "alice", ""), 0);
  EXPECT_EQ(cached(2, "bob", ""), 0) << "another client";
  EXPECT_EQ(cached(3, "alice", "s"), 0) << "another salt";
  EXPECT_EQ(cached(4, "alices", ""), 0) << "client and salt joined would spell the same";
  EXPECT_EQ(cached(5, "alice", ""), 36);
  EXPECT_EQ(cached(6, "alice", "s"), 36);
}

TEST(EngineCache, WithoutPrefixCacheEverythingIsComputed) {
  Bench bench({.prefix_cache = false});
  for (uint64_t id = 1; id <= 2; ++id) {
    bench.engine.Submit(Greedy(id, std::string(20, 'x'), 4));
    bench.RunAll();
  }
  EXPECT_EQ(bench.model.token_count, 2 * (20 + 3));
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 0);
  EXPECT_EQ(bench.engine.load().blocks_cached, 0);
}

TEST(EngineCache, TwoThatComeTogetherComputeTheirPrefixOnce) {
  Bench bench({.max_step_tokens = 8});
  const std::string prefix(32, 'x');
  bench.engine.Submit(Greedy(1, prefix + "a", 4));
  bench.engine.Submit(Greedy(2, prefix + "b", 4));
  bench.RunAll();
  EXPECT_EQ(bench.model.token_count, (33 + 3) + (1 + 3));
  EXPECT_EQ((bench.answers[{1, 0}].tokens), Expected(Ids(prefix + "a"), 4));
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids(prefix + "b"), 4));
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 32);
}

TEST(EngineCache, APreemptedSequenceComputesOnlyWhatTheCacheLost) {
  Bench bench({.max_sequences = 1});
  bench.engine.Submit(Greedy(1, std::string(16, 'x'), 20));
  for (int i = 0; i < 10; ++i) bench.engine.Step();
  SequenceRequest urgent = Greedy(2, "urgent", 4);
  urgent.priority = 1;
  bench.engine.Submit(urgent);
  bench.RunAll();
  EXPECT_EQ(bench.engine.load().preemptions, 1u);
  EXPECT_EQ((bench.answers[{1, 0}].tokens), Expected(Ids(std::string(16, 'x')), 20));
  // Computed again: one token, the first of a block that was not full.
  EXPECT_EQ(bench.model.token_count, (16 + 19) + (6 + 3) + 1);
}

TEST(EngineCache, ThePromptOfManyContinuationsIsComputedOnce) {
  Bench bench;
  SequenceRequest request = Greedy(1, std::string(30, 'x'), 10);
  request.n = 4;
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 5;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.model.token_count, 30 + 4 * 9);
  EXPECT_EQ(bench.model.copy_count, 3) << "the last block is partly filled";
  EXPECT_EQ(bench.engine.load().forks, 3u);
  // In an engine that runs one sequence at a time and caches nothing they say the same.
  Bench alone({.max_sequences = 1, .prefix_cache = false});
  alone.engine.Submit(request);
  alone.RunAll();
  EXPECT_EQ(alone.model.copy_count, 0);
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ((bench.answers[{1, i}].tokens), (alone.answers[{1, i}].tokens)) << i;
    EXPECT_EQ((bench.answers[{1, i}].tokens.size()), 10u);
  }
}

TEST(EngineCache, ForksOfAFullBlockCopyNothing) {
  Bench bench;
  SequenceRequest request = Greedy(1, std::string(32, 'x'), 10);
  request.n = 3;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.model.copy_count, 0);
  EXPECT_EQ(bench.model.token_count, 32 + 3 * 9);
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ((bench.answers[{1, i}].tokens), Expected(Ids(std::string(32, 'x')), 10));
  }
}

TEST(EngineCache, ForksInAPoolThatIsTooSmallForAllStillEnd) {
  // Eight blocks of four: one sequence of 31 tokens fits, four do not.
  Bench bench({.blocks = 8, .context = 32});
  SequenceRequest request = Greedy(1, std::string(14, 'x'), 17);
  request.n = 4;
  request.sampling.temperature = 1.0f;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_GT(bench.engine.load().preemptions, 0u);
  Bench alone({.max_sequences = 1, .prefix_cache = false});
  alone.engine.Submit(request);
  alone.RunAll();
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ((bench.answers[{1, i}].tokens), (alone.answers[{1, i}].tokens)) << i;
  }
}

TEST(EngineCache, ContinuationsThatWaitForTheirPromptEndWithIt) {
  Bench bench({.max_step_tokens = 8});
  SequenceRequest request = Greedy(1, std::string(40, 'x'), 10);
  request.n = 3;
  bench.engine.Submit(request);
  bench.engine.Step();
  bench.engine.Cancel(1);
  bench.RunAll();
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ((bench.answers[{1, i}].finish->reason), FinishReason::kCancelled) << i;
  }
  request.request_id = 2;
  bench.engine.Submit(request);
  bench.model.next_status = absl::InternalError("device lost");
  bench.RunAll();
  for (int32_t i = 0; i < 3; ++i) EXPECT_TRUE((bench.answers[{2, i}].failure)) << i;
}

TEST(EngineCache, AFailedPassLeavesNothingInTheCache) {
  Bench bench;
  bench.model.next_status = absl::InternalError("device lost");
  bench.engine.Submit(Greedy(1, std::string(16, 'x'), 4));
  bench.RunAll();
  bench.engine.Submit(Greedy(2, std::string(16, 'x'), 4));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 0);
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids(std::string(16, 'x')), 4));
}

TEST(EngineCache, AFloodOfOneClientDoesNotKeepAnotherWaiting) {
  Bench bench({.max_sequences = 2});
  for (uint64_t id = 1; id <= 40; ++id) {
    SequenceRequest request = Greedy(id, "flood", 8);
    request.client = "loud";
    bench.engine.Submit(request);
  }
  bench.engine.Step();
  SequenceRequest request = Greedy(100, "quiet", 8);
  request.client = "quiet";
  bench.engine.Submit(request);
  int steps = 0;
  while (bench.answers[{100, 0}].endings == 0) {
    ASSERT_TRUE(bench.engine.Step());
    ++steps;
  }
  EXPECT_LT(steps, 20) << "one turn of the running ones, then its own";
  EXPECT_GT(bench.engine.load().waiting, 30);
  bench.RunAll();
}

TEST(EngineCache, ShortMemoryStopsAdmissionNotTheProcess) {
  Bench bench({.blocks = 64});
  bench.engine.Submit(Greedy(1, std::string(16, 'x'), 8));
  bench.engine.Step();
  bench.engine.SetMemoryShort("990 of 1000 MiB");
  bench.engine.Submit(Greedy(2, "late", 8));
  bench.RunAll();
  const Failure& failure = *bench.answers[{2, 0}].failure;
  EXPECT_EQ(failure.code, FailureCode::kOverloaded);
  EXPECT_TRUE(absl::StrContains(failure.message, "990 of 1000 MiB")) << failure.message;
  EXPECT_EQ(bench.engine.load().memory_refusals, 1u);
  // The running one needed blocks that had no memory yet: it is told, and not left to hang.
  EXPECT_EQ((bench.answers[{1, 0}].failure->code), FailureCode::kOverloaded);
  bench.engine.SetMemoryShort("");
  bench.engine.Submit(Greedy(3, "again", 8));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{3, 0}].tokens), Expected(Ids("again"), 8));
}

TEST(EngineCache, WithShortMemoryItWorksInTheBlocksItHas) {
  Bench bench;
  bench.engine.Submit(Greedy(1, std::string(40, 'x'), 20));
  bench.RunAll();
  bench.engine.Submit(Greedy(2, std::string(30, 'y'), 20));
  bench.engine.Step();
  bench.engine.SetMemoryShort("full");
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids(std::string(30, 'y')), 20));
  EXPECT_GT(bench.engine.load().prefix_evictions, 0u);
}

}  // namespace
}  // namespace rempart::worker
