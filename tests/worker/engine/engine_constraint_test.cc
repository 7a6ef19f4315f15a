// SPDX-License-Identifier: Apache-2.0
// Sequences whose tokens a constraint restricts, over a model whose answers the test can compute.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/worker/engine/engine_bench.h"
#include "tests/worker/engine/test_constraint.h"

namespace rempart::worker {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Who draws, and whether steps are begun ahead.
enum class Drawing { kByTheEngine, kByTheModel, kAhead };
constexpr Drawing kAllDrawing[] = {Drawing::kByTheEngine, Drawing::kByTheModel, Drawing::kAhead};

Setup With(Drawing drawing, Setup setup = {}) {
  setup.is_pipelined = drawing == Drawing::kAhead;
  return setup;
}

struct ConstraintBench : Bench {
  explicit ConstraintBench(Drawing drawing, const Setup& setup = {}) : Bench(With(drawing, setup)) {
    if (drawing == Drawing::kByTheModel) model.draws = [] { return true; };
  }
  const Answer& of(uint64_t id, int32_t index = 0) { return answers.at({id, index}); }
};

TestRules Rules() { return {.vocabulary = kFakeVocabulary}; }
TestRules Exactly(const std::string& text) {
  TestRules rules = Rules();
  rules.exactly = Ids(text);
  return rules;
}

SequenceRequest Constrained(uint64_t id, const std::string& prompt, int32_t max_tokens,
                            const TestRules& rules, uint64_t seed = 1) {
  SequenceRequest request = Greedy(id, prompt, max_tokens);
  request.constraint = std::make_shared<TestConstraint>(rules, seed);
  return request;
}

// The best allowed token, again and again.
std::vector<int32_t> ExpectedUnder(const TestRules& rules, uint64_t seed,
                                   std::vector<int32_t> context, int32_t count) {
  TestRules silent = rules;
  silent.counts = nullptr;
  TestConstraint constraint(silent, seed);
  std::vector<int32_t> said;
  std::vector<float> logits(kFakeVocabulary);
  for (int32_t i = 0; i < count; ++i) {
    FakeLogits(context, -1e9f, logits.data());
    int32_t best = -1;
    for (int32_t id = 0; id < kFakeVocabulary; ++id) {
      if (constraint.Allows(id) && (best < 0 || logits[id] > logits[best])) best = id;
    }
    EXPECT_TRUE(constraint.Accept(best).ok());
    said.push_back(best);
    context.push_back(best);
  }
  return said;
}

TEST(EngineConstraint, TheBestAllowedTokenIsSaidWhoeverDraws) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintBench bench(drawing);
    bench.engine.Submit(Constrained(1, "hello", 20, Rules(), 5));
    bench.engine.Submit(Greedy(2, "hello", 20));
    bench.RunAll();
    EXPECT_EQ(bench.of(1).tokens, ExpectedUnder(Rules(), 5, Ids("hello"), 20));
    EXPECT_NE(bench.of(1).tokens, Expected(Ids("hello"), 20)) << "the test shows nothing";
    EXPECT_EQ(bench.of(2).tokens, Expected(Ids("hello"), 20));
    EXPECT_EQ(bench.of(1).finish->reason, FinishReason::kLength);
  }
}

TEST(EngineConstraint, WhatIsCompleteEndsTheAnswerWithoutAnEndToken) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintBench bench(drawing);
    bench.engine.Submit(Constrained(1, "say", 20, Exactly("yes")));
    bench.engine.Submit(Constrained(2, "say", 3, Exactly("yes")));
    bench.engine.Submit(Constrained(3, "say", 2, Exactly("yes")));
    SequenceRequest ignoring = Constrained(4, "say", 20, Exactly("yes"));
    ignoring.sampling.ignore_eos = true;
    bench.engine.Submit(ignoring);
    bench.RunAll();
    for (const uint64_t id : {1, 2, 4}) {
      EXPECT_EQ(bench.of(id).text, "yes");
      EXPECT_EQ(bench.of(id).finish->reason, FinishReason::kStop) << id;
      EXPECT_EQ(bench.of(id).finish->matched_stop, "");
      EXPECT_EQ(bench.of(id).finish->completion_tokens, 3);
    }
    EXPECT_EQ(bench.of(3).text, "ye");
    EXPECT_EQ(bench.of(3).finish->reason, FinishReason::kLength);
  }
}

TEST(EngineConstraint, AnEndTokenThatAloneIsAllowedIsDrawn) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintBench bench(drawing);
    ConstraintCounts counts;
    TestRules rules = Exactly("ok");
    rules.exactly.push_back(kFakeEnd);
    rules.counts = &counts;
    bench.engine.Submit(Constrained(1, "say", 20, rules));
    bench.RunAll();
    EXPECT_EQ(counts.accepted, 2) << "not the one that ends the sequence";
    SequenceRequest ignoring = Constrained(2, "say", 20, rules);
    ignoring.sampling.ignore_eos = true;
    bench.engine.Submit(ignoring);
    bench.RunAll();
    EXPECT_EQ(counts.accepted, 2 + 3) << "here it is a token as others are";
    for (const uint64_t id : {1, 2}) {
      EXPECT_EQ(bench.of(id).text, "ok");
      EXPECT_EQ(bench.of(id).tokens, rules.exactly);
      EXPECT_EQ(bench.of(id).finish->reason, FinishReason::kStop);
    }
  }
}

TEST(EngineConstraint, AStopStringEndsWhatIsNotComplete) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintBench bench(drawing);
    SequenceRequest request = Constrained(1, "say", 20, Exactly("abcdef"));
    request.stop = {"cd"};
    bench.engine.Submit(request);
    request.request_id = 2;
    request.stop = {"ef"};  // together with the end
    bench.engine.Submit(request);
    request.request_id = 3;
    request.stop = {"fg"};  // may still come, but nothing does
    bench.engine.Submit(request);
    bench.RunAll();
    EXPECT_EQ(bench.of(1).text, "ab");
    EXPECT_EQ(bench.of(1).finish->matched_stop, "cd");
    EXPECT_EQ(bench.of(2).text, "abcd");
    EXPECT_EQ(bench.of(2).finish->matched_stop, "ef");
    EXPECT_EQ(bench.of(3).text, "abcdef");
    EXPECT_EQ(bench.of(3).finish->matched_stop, "");
  }
}

// Constraints that fail after so many tokens, each in its own way.
struct Failing {
  TestRules rules;
  FailureCode code = FailureCode::kInternal;
  std::string message;
  int steps;  // in which it takes part
};

std::vector<Failing> AllFailing(int32_t after) {
  std::vector<Failing> all(3, {.rules = Rules(), .message = "", .steps = after});
  all[0].rules.fails_mask_after = after;
  all[0].code = FailureCode::kInvalidArgument;
  all[0].message = "tokens failed: too deep a rule";
  all[1].rules.empty_after = after;
  all[1].message =
      absl::StrCat("tokens failed: it allows no token after the first ", after, " of the answer");
  all[2].rules.fails_accept_after = after;
  all[2].message = "tokens failed: it has lost its way";
  all[2].steps = after + 1;
  return all;
}

TEST(EngineConstraint, OneThatFailsFailsItsSequenceAlone) {
  for (const Drawing drawing : kAllDrawing) {
    for (const int32_t after : {0, 2}) {
      for (const Failing& failing : AllFailing(after)) {
        SCOPED_TRACE(failing.message);
        ConstraintBench bench(drawing);
        bench.engine.Submit(Constrained(1, "one", 20, failing.rules, 8));
        bench.RunAll();
        EXPECT_EQ(bench.model.forward_count, failing.steps) << "a step of nothing is none";
        bench.engine.Submit(Greedy(2, "two", 12));
        bench.engine.Submit(Constrained(3, "three", 12, failing.rules, 9));
        bench.engine.Submit(Constrained(4, "four", 12, Rules(), 9));
        bench.RunAll();
        for (const uint64_t id : {1, 3}) {
          ASSERT_TRUE(bench.of(id).failure.has_value());
          EXPECT_EQ(bench.of(id).failure->code, failing.code);
          EXPECT_TRUE(absl::StrContains(bench.of(id).failure->message, failing.message))
              << bench.of(id).failure->message;
          EXPECT_EQ(bench.of(id).tokens.size(), static_cast<size_t>(after));
          EXPECT_EQ(bench.of(id).endings, 1);
        }
        EXPECT_EQ(bench.of(2).tokens, Expected(Ids("two"), 12));
        EXPECT_EQ(bench.of(4).tokens, ExpectedUnder(Rules(), 9, Ids("four"), 12));
        EXPECT_EQ(bench.engine.load().requests_failed, 2u);
        EXPECT_EQ(bench.model.steps_running(), 0u);
      }
    }
  }
}

// The continuations have nothing to be forked from then.
TEST(EngineConstraint, OneThatFailsAtOnceFailsAllContinuations) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintCounts counts;
    TestRules rules = Rules();
    rules.counts = &counts;
    ConstraintBench bench(drawing);
    rules.fails_copy = true;
    SequenceRequest request = Constrained(1, "prompt", 8, rules);
    request.n = 3;
    bench.engine.Submit(std::move(request));
    rules.fails_copy = false;
    rules.empty_after = 0;
    request = Constrained(2, "prompt", 8, rules);
    request.n = 3;
    bench.engine.Submit(std::move(request));
    bench.RunAll();
    for (int32_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(absl::StrContains(bench.of(1, i).failure->message, "no room for another one"));
      EXPECT_TRUE(absl::StrContains(bench.of(2, i).failure->message, "after the first 0"));
    }
    EXPECT_EQ(counts.alive, 0);
  }
}

TEST(EngineConstraint, TokensThatAreAllowedButImpossibleAreNotTakenForBrokenLogits) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintBench bench(drawing);
    bench.model.script = [](const std::vector<int32_t>& context, float* logits) {
      if (context[0] == 'x') logits[int{'b'}] = -kInfinity;
      // Which the mask would hide.
      if (context[0] == 'n') logits[int{'z'}] = std::numeric_limits<float>::quiet_NaN();
      if (context[0] == 'i') logits[int{'z'}] = kInfinity;
    };
    for (const char* prompt : {"abc", "xyz", "nan", "inf"}) {
      bench.engine.Submit(
          Constrained(static_cast<uint64_t>(prompt[0]), prompt, 8, Exactly("abba")));
    }
    bench.RunAll();
    EXPECT_EQ(bench.of('a').text, "abba");
    EXPECT_EQ(bench.of('x').text, "a");
    EXPECT_TRUE(absl::StrContains(bench.of('x').failure->message, "constraint"))
        << bench.of('x').failure->message;
    for (const uint64_t broken : {'n', 'i'}) {
      EXPECT_TRUE(absl::StrContains(bench.of(broken).failure->message, "are not numbers"))
          << bench.of(broken).failure->message;
    }
  }
}

TEST(EngineConstraint, LogProbabilitiesAreThoseOfTheModel) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintBench bench(drawing);
    SequenceRequest request = Constrained(1, "abc", 5, Rules(), 3);
    for (const int32_t alternatives : {0, 3}) {
      request.request_id = static_cast<uint64_t>(alternatives);
      request.sampling.top_logprobs = alternatives;
      bench.engine.Submit(request);
    }
    bench.RunAll();
    std::vector<float> logits(kFakeVocabulary);
    FakeLogits(Ids("abc"), -1e9f, logits.data());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    for (const uint64_t id : {0, 3}) {
      const SampledLogprob& first = bench.of(id).logprobs.at(0);
      EXPECT_EQ(first.chosen.token_id, bench.of(id).tokens.at(0));
      EXPECT_NEAR(first.chosen.logprob, logits[bench.of(id).tokens.at(0)] - std::log(sum), 1e-4);
      EXPECT_EQ(first.chosen.logprob, bench.of(0).logprobs.at(0).chosen.logprob);
    }
    EXPECT_EQ(bench.of(3).logprobs.at(0).top.at(0).token_id, Expected(Ids("abc"), 1).at(0))
        << "an alternative need not be allowed";
  }
}

TEST(EngineConstraint, EachContinuationGoesItsOwnWay) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintCounts counts;
    TestRules rules = Rules();
    rules.counts = &counts;
    ConstraintBench bench(drawing, {.blocks = 32, .max_sequences = 3});
    SequenceRequest request = Constrained(1, "prompt", 16, rules, 4);
    request.n = 5;  // two of them wait for a slot
    request.sampling.temperature = 1.0f;
    bench.engine.Submit(std::move(request));
    bench.RunAll();
    ASSERT_EQ(bench.answers.size(), 5u);
    for (int32_t i = 0; i < 5; ++i) {
      ASSERT_EQ(bench.of(1, i).tokens.size(), 16u);
      ASSERT_NO_FATAL_FAILURE(ExpectObeys(rules, 4, bench.of(1, i).tokens, kFakeEnd));
      for (int32_t j = 0; j < i; ++j) EXPECT_NE(bench.of(1, i).tokens, bench.of(1, j).tokens);
    }
    EXPECT_EQ(counts.copies, 5);
    EXPECT_EQ(counts.accepted, 5 * 16);
    EXPECT_EQ(counts.masks, 1 + 5 * 15) << "the first one serves all";
    EXPECT_EQ(counts.alive, 0);
  }
}

TEST(EngineConstraint, WhoIsComputedAgainAcceptsNothingTwice) {
  for (const Drawing drawing : kAllDrawing) {
    for (const bool prefix_cache : {false, true}) {
      ConstraintCounts counts;
      TestRules rules = Rules();
      rules.counts = &counts;
      ConstraintBench bench(
          drawing,
          {.blocks = 32, .context = 100, .max_sequences = 6, .prefix_cache = prefix_cache});
      const auto prompt = [](uint64_t id) {
        return std::string(id * 2, static_cast<char>('a' + id));
      };
      for (uint64_t id = 1; id <= 12; ++id) {
        bench.engine.Submit(id % 3 == 0 ? Greedy(id, prompt(id), 30)
                                        : Constrained(id, prompt(id), 30, rules, id));
      }
      bench.RunAll();
      EXPECT_GT(bench.engine.load().preemptions, 0u);
      EXPECT_LE(*std::max_element(bench.model.batch_sizes.begin(), bench.model.batch_sizes.end()),
                6u);
      for (uint64_t id = 1; id <= 12; ++id) {
        EXPECT_EQ(bench.of(id).tokens, id % 3 == 0 ? Expected(Ids(prompt(id)), 30)
                                                   : ExpectedUnder(rules, id, Ids(prompt(id)), 30))
            << id;
      }
      EXPECT_EQ(counts.accepted, 8 * 30);
      EXPECT_EQ(counts.masks, 8 * 30);
    }
  }
}

TEST(EngineConstraint, ResumedElsewhereItGoesOnFromTheSameState) {
  const std::vector<int32_t> all = ExpectedUnder(Rules(), 7, Ids("prompt"), 16);
  for (const size_t delivered : {1, 9, 15}) {
    Bench bench;
    SequenceRequest request = Constrained(1, "prompt", 16, Rules(), 7);
    request.resume_tokens.assign(all.begin(), all.begin() + delivered);
    request.n = 2;
    bench.engine.Submit(request);
    bench.RunAll();
    std::vector<int32_t> joined = request.resume_tokens;
    const Answer& rest = bench.answers.at({1, 1});
    joined.insert(joined.end(), rest.tokens.begin(), rest.tokens.end());
    EXPECT_EQ(joined, all);
    EXPECT_EQ(rest.finish->completion_tokens, 16);
  }
  Bench bench;
  SequenceRequest request = Constrained(1, "say", 3, Exactly("yes"));
  request.resume_tokens = Ids("yes");
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_TRUE(bench.answers.at({1, 0}).tokens.empty());
  EXPECT_EQ(bench.answers.at({1, 0}).finish->reason, FinishReason::kStop) << "it was complete";
}

TEST(EngineConstraint, ACancelledRequestKeepsNoConstraint) {
  for (const Drawing drawing : kAllDrawing) {
    ConstraintCounts counts;
    TestRules rules = Rules();
    rules.counts = &counts;
    ConstraintBench bench(drawing);
    SequenceRequest request = Constrained(1, "prompt", 100, rules);
    request.n = 4;
    bench.engine.Submit(std::move(request));
    bench.engine.Submit(Greedy(2, "other", 30));
    for (int i = 0; i < 5; ++i) bench.engine.Step();
    EXPECT_EQ(counts.alive, 4);
    bench.engine.Cancel(1);
    bench.engine.Step();
    EXPECT_EQ(counts.alive, 0);
    bench.RunAll();
    EXPECT_EQ(bench.of(2).tokens, Expected(Ids("other"), 30));
  }
}

// Its mask needs the token that is in flight.
TEST(EngineConstraint, OnlyTheOthersAreBegunAhead) {
  Bench bench({.is_pipelined = true});
  bench.engine.Submit(Constrained(1, "abc", 6, Rules(), 2));
  bench.RunAll();
  EXPECT_EQ(bench.model.ahead_count, 0);
  EXPECT_EQ(bench.model.forward_count, 6);
  bench.engine.Submit(Constrained(2, "abc", 6, Rules(), 2));
  bench.engine.Submit(Greedy(3, "xyz", 11));
  bench.RunAll();
  EXPECT_EQ(bench.model.ahead_count, 10);
  EXPECT_EQ(bench.model.forward_count, 6 + 11) << "it takes part in every second step";
  const std::vector<int32_t> expected = ExpectedUnder(Rules(), 2, Ids("abc"), 6);
  EXPECT_EQ((bench.answers.at({1, 0}).tokens), expected);
  EXPECT_EQ((bench.answers.at({2, 0}).tokens), expected);
  EXPECT_EQ((bench.answers.at({3, 0}).tokens), Expected(Ids("xyz"), 11));
}

// A sequence that waits for its token holds its slot: nobody is admitted in its place.
TEST(EngineConstraint, WhoWaitsForATokenKeepsItsSlot) {
  Bench bench({.max_sequences = 2, .is_pipelined = true});
  for (uint64_t id = 1; id <= 8; ++id) {
    bench.engine.Submit(id % 2 == 0 ? Greedy(id, "xyz", 5 + static_cast<int32_t>(id))
                                    : Constrained(id, "abc", 9, Rules(), id));
  }
  while (bench.engine.Step()) EXPECT_LE(bench.engine.load().running, 2);
  EXPECT_LE(*std::max_element(bench.model.batch_sizes.begin(), bench.model.batch_sizes.end()), 2u);
  EXPECT_GT(bench.model.ahead_count, 5);
  for (uint64_t id = 1; id <= 8; ++id) EXPECT_EQ((bench.answers.at({id, 0}).endings), 1);
}

}  // namespace
}  // namespace rempart::worker
