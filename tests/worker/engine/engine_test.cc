// SPDX-License-Identifier: Apache-2.0
// The engine over a model whose answers the test can compute itself.
#include "worker/engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "tests/worker/engine/fake_model.h"
#include "worker/engine/engine_thread.h"

namespace rempart::worker {
namespace {

std::vector<int32_t> Ids(const std::string& text) {
  return std::vector<int32_t>(text.begin(), text.end());
}

// Everything that one continuation received.
struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<SampledLogprob> logprobs;
  std::optional<PromptFacts> prompt;
  std::optional<Finish> finish;
  std::optional<Failure> failure;
  int endings = 0;
};

struct Setup {
  int32_t blocks = 64;
  int32_t context = 128;
  int32_t max_sequences = 8;
  int32_t max_step_tokens = 16;
  int32_t max_waiting = 100;
  bool prefix_cache = true;
};

class Bench {
 public:
  explicit Bench(Setup setup = {})
      : model(setup.blocks, 4),
        engine({.limits = {.max_step_tokens = setup.max_step_tokens,
                           .max_sequences = setup.max_sequences,
                           .block_size = 4},
                .context_length = setup.context,
                .blocks_total = setup.blocks,
                .max_waiting = setup.max_waiting,
                .prefix_cache = setup.prefix_cache},
               &model, &vocabulary, &clock,
               [this](StepResult result) { Collect(std::move(result)); }) {}

  void Collect(StepResult result) {
    ++sink_calls;
    for (SequenceDelta& delta : result.deltas) {
      Answer& answer = answers[{delta.request_id, delta.index}];
      EXPECT_EQ(answer.endings, 0) << "a delta after the end";
      answer.tokens.insert(answer.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
      answer.text += delta.text;
      for (SampledLogprob& l : delta.logprobs) answer.logprobs.push_back(std::move(l));
      if (delta.prompt) answer.prompt = delta.prompt;
      if (delta.finish) answer.finish = delta.finish, ++answer.endings;
      if (delta.failure) answer.failure = delta.failure, ++answer.endings;
    }
  }

  void RunAll() {
    for (int step = 0; engine.Step(); ++step) ASSERT_LT(step, 10'000);
    EXPECT_EQ(engine.load().blocks_used, 0);
  }

  FakeModel model;
  FakeVocabulary vocabulary;
  ManualClock clock;
  std::map<std::pair<uint64_t, int32_t>, Answer> answers;
  int sink_calls = 0;
  Engine engine;
};

SequenceRequest Greedy(uint64_t id, const std::string& prompt, int32_t max_tokens) {
  SequenceRequest request;
  request.request_id = id;
  request.prompt_ids = Ids(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

// What the fake model says greedily, computed without engine, blocks or chunks.
std::vector<int32_t> Expected(std::vector<int32_t> context, int32_t count) {
  std::vector<int32_t> said;
  std::vector<float> logits(kFakeVocabulary);
  for (int32_t i = 0; i < count; ++i) {
    FakeLogits(context, -1e9f, logits.data());
    said.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    context.push_back(said.back());
  }
  return said;
}

TEST(Engine, SaysWhatTheModelSays) {
  Bench bench;
  bench.engine.Submit(Greedy(1, "hello", 20));
  bench.RunAll();
  const Answer& answer = bench.answers[{1, 0}];
  EXPECT_EQ(answer.tokens, Expected(Ids("hello"), 20));
  EXPECT_EQ(answer.finish->reason, FinishReason::kLength);
  EXPECT_EQ(answer.finish->completion_tokens, 20);
  EXPECT_EQ(answer.prompt->prompt_tokens, 5);
}

TEST(Engine, AChunkedPromptChangesNothing) {
  Bench bench({.max_sequences = 4, .max_step_tokens = 4});
  const std::string prompt(50, 'x');
  bench.engine.Submit(Greedy(1, prompt, 10));
  bench.RunAll();
  EXPECT_EQ(bench.answers[(std::pair<uint64_t, int32_t>{1, 0})].tokens, Expected(Ids(prompt), 10));
  EXPECT_EQ(bench.model.forward_count, 13 + 9);
}

TEST(Engine, ManyTogetherSayTheSameAsEachAlone) {
  // The pool holds about three of them: the rest waits and some are preempted.
  Bench bench({.blocks = 32, .context = 100, .max_sequences = 6});
  for (uint64_t id = 1; id <= 20; ++id) {
    bench.engine.Submit(Greedy(id, std::string(id * 2, char('a' + id)), 30));
  }
  bench.RunAll();
  EXPECT_GT(bench.engine.load().preemptions, 0u);
  EXPECT_GT(*std::max_element(bench.model.batch_sizes.begin(), bench.model.batch_sizes.end()), 3u);
  for (uint64_t id = 1; id <= 20; ++id) {
    const Answer& answer = bench.answers[{id, 0}];
    EXPECT_EQ(answer.tokens, Expected(Ids(std::string(id * 2, char('a' + id))), 30)) << id;
    EXPECT_EQ(answer.endings, 1);
  }
}

TEST(Engine, ASeedGivesTheSameTokensInAnyCompany) {
  const auto sampled = [](int company) {
    Bench bench;
    for (int i = 0; i < company; ++i) bench.engine.Submit(Greedy(100 + i, "company", 40));
    SequenceRequest request = Greedy(1, "seeded", 30);
    request.sampling.temperature = 1.5f;
    request.sampling.top_p = 0.9f;
    request.sampling.seed = 42;
    bench.engine.Submit(request);
    bench.RunAll();
    return bench.answers[{1, 0}].tokens;
  };
  const std::vector<int32_t> alone = sampled(0);
  EXPECT_NE(alone, Expected(Ids("seeded"), 30)) << "temperature 1.5 must not be greedy";
  EXPECT_EQ(sampled(5), alone);
  EXPECT_EQ(sampled(7), alone);
}

TEST(Engine, ResumedElsewhereItGoesOnAsIfNothingHadHappened) {
  SequenceRequest request = Greedy(1, "prompt", 24);
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 9;
  request.sampling.presence_penalty = 1.0f;
  Bench whole;
  whole.engine.Submit(request);
  whole.RunAll();
  const Answer& all = whole.answers[{1, 0}];
  for (size_t delivered : {1, 10, 23}) {
    Bench second;
    request.resume_tokens.assign(all.tokens.begin(), all.tokens.begin() + delivered);
    second.engine.Submit(request);
    second.RunAll();
    std::vector<int32_t> joined = request.resume_tokens;
    const Answer& rest = second.answers[{1, 0}];
    joined.insert(joined.end(), rest.tokens.begin(), rest.tokens.end());
    EXPECT_EQ(joined, all.tokens) << delivered;
    EXPECT_EQ(rest.finish->completion_tokens, 24);
  }
}

TEST(Engine, ContinuationsOfOnePromptDiffer) {
  Bench bench;
  SequenceRequest request = Greedy(1, "prompt", 16);
  request.n = 3;
  request.sampling.temperature = 1.0f;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.answers.size(), 3u);
  EXPECT_NE((bench.answers[{1, 0}].tokens), (bench.answers[{1, 1}].tokens));
  EXPECT_NE((bench.answers[{1, 1}].tokens), (bench.answers[{1, 2}].tokens));
}

TEST(Engine, WhatWasComputedForOneIsNotComputedForTheNext) {
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

TEST(Engine, AConversationFindsItsOwnAnswerInTheCache) {
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

TEST(Engine, AWholePromptInTheCacheStillGetsItsLogits) {
  Bench bench;
  for (uint64_t id = 1; id <= 2; ++id) {
    bench.engine.Submit(Greedy(id, "abcdefgh", 4));
    bench.RunAll();
    EXPECT_EQ((bench.answers[{id, 0}].tokens), Expected(Ids("abcdefgh"), 4));
  }
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 4) << "all full blocks but the last";
}

TEST(Engine, ClientsAndSaltsShareNothing) {
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

TEST(Engine, WithoutPrefixCacheEverythingIsComputed) {
  Bench bench({.prefix_cache = false});
  for (uint64_t id = 1; id <= 2; ++id) {
    bench.engine.Submit(Greedy(id, std::string(20, 'x'), 4));
    bench.RunAll();
  }
  EXPECT_EQ(bench.model.token_count, 2 * (20 + 3));
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 0);
  EXPECT_EQ(bench.engine.load().blocks_cached, 0);
}

TEST(Engine, TwoThatComeTogetherComputeTheirPrefixOnce) {
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

TEST(Engine, APreemptedSequenceComputesOnlyWhatTheCacheLost) {
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

TEST(Engine, ThePromptOfManyContinuationsIsComputedOnce) {
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

TEST(Engine, ForksOfAFullBlockCopyNothing) {
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

TEST(Engine, ForksInAPoolThatIsTooSmallForAllStillEnd) {
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

TEST(Engine, ContinuationsThatWaitForTheirPromptEndWithIt) {
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

TEST(Engine, AFailedPassLeavesNothingInTheCache) {
  Bench bench;
  bench.model.next_status = absl::InternalError("device lost");
  bench.engine.Submit(Greedy(1, std::string(16, 'x'), 4));
  bench.RunAll();
  bench.engine.Submit(Greedy(2, std::string(16, 'x'), 4));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].prompt->cached_tokens), 0);
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids(std::string(16, 'x')), 4));
}

TEST(Engine, AFloodOfOneClientDoesNotKeepAnotherWaiting) {
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

TEST(Engine, ShortMemoryStopsAdmissionNotTheProcess) {
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

TEST(Engine, WithShortMemoryItWorksInTheBlocksItHas) {
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

TEST(Engine, StopsBeforeAStopStringThatCrossesTokens) {
  Bench bench;
  Recite(bench.model, 1, "one two END three");
  SequenceRequest request = Greedy(1, "p", 40);
  request.stop = {" END", "never"};
  bench.engine.Submit(request);
  bench.RunAll();
  const Answer& answer = bench.answers[{1, 0}];
  EXPECT_EQ(answer.text, "one two");
  EXPECT_EQ(answer.finish->reason, FinishReason::kStop);
  EXPECT_EQ(answer.finish->matched_stop, " END");
}

TEST(Engine, EndsAtTheModelsEndUnlessToldToIgnoreIt) {
  Bench bench;
  Recite(bench.model, 1, "hi");
  bench.engine.Submit(Greedy(1, "p", 40));
  SequenceRequest ignoring = Greedy(2, "p", 6);
  ignoring.sampling.ignore_eos = true;
  bench.engine.Submit(ignoring);
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].text), "hi");
  EXPECT_EQ((bench.answers[{1, 0}].finish->reason), FinishReason::kStop);
  EXPECT_EQ((bench.answers[{2, 0}].finish->completion_tokens), 6);
}

TEST(Engine, EchoesThePromptOnce) {
  Bench bench;
  Recite(bench.model, 6, "!");
  SequenceRequest request = Greedy(1, "prompt", 4);
  request.echo_text = "prompt";
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].text), "prompt!");
}

TEST(Engine, ReportsLogprobsOfWhatTheModelSaid) {
  Bench bench;
  SequenceRequest request = Greedy(1, "p", 3);
  request.sampling.top_logprobs = 4;
  bench.engine.Submit(request);
  bench.RunAll();
  const Answer& answer = bench.answers[{1, 0}];
  ASSERT_EQ(answer.logprobs.size(), 3u);
  EXPECT_EQ(answer.logprobs[1].chosen.token_id, answer.tokens[1]);
  ASSERT_EQ(answer.logprobs[1].top.size(), 4u);
  EXPECT_EQ(answer.logprobs[1].top[0].logprob, answer.logprobs[1].chosen.logprob);
  EXPECT_GE(answer.logprobs[1].top[0].logprob, answer.logprobs[1].top[1].logprob);
}

TEST(Engine, ACancelledRequestHoldsNoBlockAfterTheNextStep) {
  Bench bench;
  bench.engine.Submit(Greedy(1, "prompt", 100));
  bench.engine.Submit(Greedy(2, "other", 5));
  bench.engine.Step();
  EXPECT_GT(bench.engine.load().blocks_used, 2);
  bench.engine.Cancel(1);
  bench.engine.Step();
  EXPECT_EQ((bench.answers[{1, 0}].finish->reason), FinishReason::kCancelled);
  EXPECT_EQ(bench.engine.load().running, 1);
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids("other"), 5));
}

TEST(Engine, ARequestEndsAtItsDeadline) {
  Bench bench;
  SequenceRequest request = Greedy(1, "prompt", 100);
  request.deadline = bench.clock.Now() + absl::Seconds(2);
  bench.engine.Submit(request);
  bench.engine.Step();
  bench.clock.Advance(absl::Seconds(3));
  bench.engine.Step();
  EXPECT_EQ((bench.answers[{1, 0}].finish->reason), FinishReason::kDeadline);
  EXPECT_EQ((bench.answers[{1, 0}].finish->completion_tokens), 1);
}

TEST(Engine, SaysByHowMuchTheContextOverflows) {
  Bench bench({.context = 32});
  bench.engine.Submit(Greedy(1, std::string(20, 'x'), 13));
  bench.engine.Submit(Greedy(2, std::string(32, 'x'), 0));
  bench.engine.Submit(Greedy(3, std::string(20, 'x'), 0));
  bench.RunAll();
  const Failure& failure = *bench.answers[{1, 0}].failure;
  EXPECT_EQ(failure.code, FailureCode::kContextOverflow);
  EXPECT_TRUE(absl::StrContains(failure.message, "holds 32 tokens")) << failure.message;
  EXPECT_TRUE(absl::StrContains(failure.message, "needs 33: 20 in the prompt and 13"));
  EXPECT_EQ(failure.field, "max_tokens");
  EXPECT_EQ((bench.answers[{2, 0}].failure->field), "prompt");
  EXPECT_EQ((bench.answers[{3, 0}].finish->completion_tokens), 12) << "as many as fit";
}

TEST(Engine, RefusesWhatItsQueueCannotHold) {
  Bench bench({.max_sequences = 1, .max_waiting = 2});
  for (uint64_t id = 1; id <= 4; ++id) bench.engine.Submit(Greedy(id, "p", 4));
  bench.RunAll();
  EXPECT_FALSE((bench.answers[{3, 0}].failure));
  EXPECT_EQ((bench.answers[{4, 0}].failure->code), FailureCode::kOverloaded);
}

TEST(Engine, DrainingItFinishesWhatRunsAndRefusesTheRest) {
  Bench bench;
  bench.engine.Submit(Greedy(1, "first", 8));
  bench.engine.Step();
  bench.engine.Drain();
  bench.engine.Submit(Greedy(2, "late", 8));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].finish->completion_tokens), 8);
  EXPECT_EQ((bench.answers[{2, 0}].failure->code), FailureCode::kDraining);
  EXPECT_TRUE(bench.engine.load().draining);
}

TEST(Engine, WhatHasNotEndedAtTheDeadlineOfTheDrainIsSentElsewhere) {
  Bench bench;
  bench.engine.Submit(Greedy(1, "first", 100));
  bench.engine.Step();
  bench.engine.Drain(bench.clock.Now() + absl::Seconds(5));
  bench.engine.Drain();
  bench.engine.Step();
  bench.clock.Advance(absl::Seconds(6));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].failure->code), FailureCode::kDraining);
  EXPECT_EQ((bench.answers[{1, 0}].tokens.size()), 2u);
}

TEST(Engine, AFailedPassFailsItsRequestsAndNothingElse) {
  Bench bench;
  bench.engine.Submit(Greedy(1, "first", 8));
  bench.model.next_status = absl::InternalError("device lost");
  bench.engine.Step();
  EXPECT_EQ((bench.answers[{1, 0}].failure->code), FailureCode::kInternal);
  bench.engine.Submit(Greedy(2, "second", 8));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids("second"), 8));
}

TEST(Engine, TellsTheSinkOncePerStep) {
  Bench bench;
  for (uint64_t id = 1; id <= 4; ++id) bench.engine.Submit(Greedy(id, "p", 4));
  bench.RunAll();
  EXPECT_EQ(bench.sink_calls, 4);
}

TEST(Engine, LoadCountsSubmissionsThatItsFiguresInclude) {
  Bench bench;
  EXPECT_EQ(bench.engine.Submit(Greedy(1, "p", 2)), 1u);
  EXPECT_EQ(bench.engine.load().submissions_seen, 0u);
  bench.engine.Step();
  EXPECT_EQ(bench.engine.load().submissions_seen, 1u);
  EXPECT_EQ(bench.engine.load().running, 1);
}

TEST(EngineThread, AnswersFromItsOwnThreadAndStops) {
  Mutex mu;
  int finished = 0;
  FakeModel model(64, 4);
  FakeVocabulary vocabulary;
  SystemClock clock;
  Engine engine({.limits = {.block_size = 4}, .context_length = 64, .blocks_total = 64}, &model,
                &vocabulary, &clock, [&](StepResult result) {
                  MutexLock lock(&mu);
                  for (const SequenceDelta& d : result.deltas) finished += d.finish ? 1 : 0;
                });
  {
    EngineThread thread(&engine);
    for (uint64_t id = 1; id <= 50; ++id) engine.Submit(Greedy(id, "p", 8));
    engine.Cancel(17);
    const auto all_finished = [&] { return finished == 50; };
    MutexLock lock(&mu);
    EXPECT_TRUE(mu.AwaitWithTimeout(absl::Condition(&all_finished), absl::Seconds(30)));
  }
}

}  // namespace
}  // namespace rempart::worker
