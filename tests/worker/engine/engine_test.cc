// SPDX-License-Identifier: Apache-2.0
// The engine over a model whose answers the test can compute itself.
#include "worker/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "tests/worker/engine/engine_bench.h"
#include "worker/engine/engine_thread.h"

namespace rempart::worker {
namespace {

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

TEST(Engine, ResumedItTakesRequestsAgainAndNoDeadlineHolds) {
  Bench bench;
  bench.engine.Submit(Greedy(1, "first", 8));
  bench.engine.Step();
  bench.engine.Drain(bench.clock.Now() + absl::Seconds(5));
  bench.engine.Step();
  bench.engine.Resume();
  EXPECT_FALSE(bench.engine.load().draining);
  bench.clock.Advance(absl::Seconds(6));
  bench.engine.Submit(Greedy(2, "second", 8));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].finish->completion_tokens), 8);
  EXPECT_EQ((bench.answers[{2, 0}].finish->completion_tokens), 8);
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

TEST(Engine, OffersTheModelWhatItMayDrawItself) {
  Bench bench;
  bench.model.draws = [] { return true; };
  bench.engine.Submit(Greedy(1, "abc", 6));
  bench.RunAll();
  EXPECT_EQ(bench.answers.at({1, 0}).tokens, Expected(Ids("abc"), 6));
  EXPECT_EQ(bench.model.offered_count, 6);
  // A log-probability comes with the token; alternatives need the logits, and forks those of the
  // prompt.
  SequenceRequest request = Greedy(2, "abd", 6);
  request.sampling.top_logprobs = 0;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.model.offered_count, 12);
  EXPECT_EQ(bench.answers.at({2, 0}).logprobs.size(), 6u);
  request.request_id = 3;
  request.sampling.top_logprobs = 1;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.model.offered_count, 12);
  for (size_t i = 0; i < 6; ++i) {
    const SampledLogprob& drawn = bench.answers.at({2, 0}).logprobs[i];
    const SampledLogprob& sampled = bench.answers.at({3, 0}).logprobs[i];
    EXPECT_EQ(drawn.chosen.token_id, sampled.chosen.token_id);
    EXPECT_EQ(drawn.chosen.logprob, sampled.chosen.logprob);
    EXPECT_TRUE(drawn.top.empty());
  }
  request = Greedy(4, "abe", 6);
  request.n = 3;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.model.offered_count, 12 + 3 * 5);
}

TEST(Engine, LogitsThatAreNotNumbersFailTheirRequestWhoeverDraws) {
  for (const bool draws : {false, true}) {
    Bench bench;
    bench.model.draws = [draws] { return draws; };
    bench.model.script = [](const std::vector<int32_t>& context, float* logits) {
      if (context[0] == 'x') logits[5] = std::numeric_limits<float>::quiet_NaN();
    };
    bench.engine.Submit(Greedy(1, "xyz", 4));
    bench.engine.Submit(Greedy(2, "abc", 4));
    testing::internal::CaptureStderr();
    bench.RunAll();
    EXPECT_THAT(testing::internal::GetCapturedStderr(),
                testing::HasSubstr("ERROR engine: the model computed logits that are not numbers"));
    ASSERT_TRUE(bench.answers.at({1, 0}).failure.has_value());
    EXPECT_EQ(bench.answers.at({1, 0}).failure->code, FailureCode::kInternal);
    EXPECT_EQ(bench.answers.at({2, 0}).tokens, Expected(Ids("abc"), 4));
  }
}

TEST(Engine, SeveralBiasesOfOneTokenAddUp) {
  for (const bool draws : {false, true}) {
    Bench bench;
    bench.model.draws = [draws] { return draws; };
    SequenceRequest request = Greedy(1, "abc", 3);
    request.sampling.logit_bias = {{65, 60.0f}, {66, 100.0f}, {65, 60.0f}};
    bench.engine.Submit(request);
    bench.RunAll();
    EXPECT_EQ(bench.answers.at({1, 0}).text, "AAA");
  }
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

TEST(EngineAhead, BeginsAStepBeforeTheTokensOfTheOneBeforeAreKnown) {
  Bench bench({.is_pipelined = true});
  bench.engine.Submit(Greedy(1, "abc", 6));
  bench.engine.Submit(Greedy(2, "xyz", 9));
  bench.engine.Step();
  EXPECT_EQ(bench.model.steps_running(), 1u);
  EXPECT_EQ((bench.answers[{1, 0}].tokens.size()), 1u);
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].tokens), Expected(Ids("abc"), 6));
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids("xyz"), 9));
  EXPECT_EQ(bench.model.ahead_count, 8);
  EXPECT_EQ(bench.model.forward_count, 9) << "nothing is computed beyond the last token";
  EXPECT_EQ(bench.engine.load().steps, 9u);
  EXPECT_EQ(bench.sink_calls, 9);
}

TEST(EngineAhead, WhatIsComputedBeyondTheEndIsThrownAway) {
  Bench bench({.is_pipelined = true});
  Recite(bench.model, 4, "stop it");
  SequenceRequest request = Greedy(1, "talk", 50);
  bench.engine.Submit(request);
  request.request_id = 2;
  request.stop = {"op"};
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ((bench.answers[{1, 0}].text), "stop it");
  EXPECT_EQ((bench.answers[{1, 0}].finish->reason), FinishReason::kStop);
  EXPECT_EQ((bench.answers[{1, 0}].finish->completion_tokens), 8);
  EXPECT_EQ((bench.answers[{2, 0}].text), "st");
  EXPECT_EQ((bench.answers[{2, 0}].finish->matched_stop), "op");
  EXPECT_EQ((bench.answers[{2, 0}].tokens.size()), 4u);
  EXPECT_EQ(bench.engine.load().generated_tokens, 8u + 4u);
  EXPECT_EQ(bench.model.forward_count, 9) << "one step beyond the end of text";
  EXPECT_EQ(bench.model.steps_running(), 0u);
}

TEST(EngineAhead, ACancelledRequestHoldsNoBlockAfterTheNextStepThoughItsStepRuns) {
  Bench bench({.blocks = 40, .is_pipelined = true});
  bench.engine.Submit(Greedy(1, "prompt", 100));
  bench.engine.Submit(Greedy(2, "other", 12));
  for (int i = 0; i < 4; ++i) bench.engine.Step();
  EXPECT_EQ(bench.model.steps_running(), 1u);
  const size_t received = bench.answers[{1, 0}].tokens.size();
  bench.engine.Cancel(1);
  bench.engine.Step();
  EXPECT_EQ((bench.answers[{1, 0}].finish->reason), FinishReason::kCancelled);
  EXPECT_EQ((bench.answers[{1, 0}].tokens.size()), received);
  EXPECT_EQ(bench.engine.load().running, 1);
  // Its blocks may be another's at once.
  bench.engine.Submit(Greedy(3, "a new one that is long enough to need them", 20));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids("other"), 12));
  EXPECT_EQ((bench.answers[{3, 0}].tokens),
            Expected(Ids("a new one that is long enough to need them"), 20));
}

TEST(EngineAhead, AlternativesWaitForTheTokens) {
  Bench bench({.is_pipelined = true});
  SequenceRequest request = Greedy(1, "abd", 6);
  request.sampling.top_logprobs = 2;
  bench.engine.Submit(request);
  bench.RunAll();
  EXPECT_EQ(bench.model.ahead_count, 0);
  EXPECT_EQ((bench.answers[{1, 0}].tokens), Expected(Ids("abd"), 6));
}

TEST(EngineAhead, PenaltiesCountTheTokenThatIsNotKnownYet) {
  for (const bool is_pipelined : {false, true}) {
    Bench bench({.is_pipelined = is_pipelined});
    // "b" again and again, but for the penalty; then what is next best.
    bench.model.script = [](const std::vector<int32_t>&, float* logits) {
      for (int32_t i = 0; i < 6; ++i) logits['b' + i] = 100.0f - static_cast<float>(i);
    };
    SequenceRequest request = Greedy(1, "abc", 6);
    request.sampling.presence_penalty = 2.0f;
    request.sampling.frequency_penalty = 0.6f;
    bench.engine.Submit(request);
    bench.RunAll();
    EXPECT_EQ((bench.answers[{1, 0}].text), "bcdbeb");
    EXPECT_EQ(bench.model.ahead_count, is_pipelined ? 5 : 0);
  }
}

TEST(EngineAhead, AStepThatFailsFailsItsRequestsOnce) {
  Bench bench({.is_pipelined = true});
  bench.engine.Submit(Greedy(1, "first", 8));
  bench.engine.Step();
  bench.model.next_finish = absl::InternalError("device lost");
  bench.engine.Step();
  EXPECT_EQ((bench.answers[{1, 0}].failure->code), FailureCode::kInternal);
  bench.engine.Submit(Greedy(2, "second", 8));
  bench.RunAll();
  EXPECT_EQ((bench.answers[{2, 0}].tokens), Expected(Ids("second"), 8));
  // One that cannot be begun, while another one runs.
  bench.engine.Submit(Greedy(3, "third", 8));
  bench.engine.Step();
  bench.model.next_status = absl::InvalidArgumentError("no such block");
  bench.RunAll();
  EXPECT_EQ((bench.answers[{3, 0}].failure->code), FailureCode::kInternal);
  EXPECT_EQ((bench.answers[{3, 0}].endings), 1);
  EXPECT_EQ(bench.engine.load().requests_failed, 2u);
}

TEST(EngineAhead, AnEngineThatGoesWaitsForItsStep) {
  FakeModel model(64, 4, /*has_pipeline=*/true);
  FakeVocabulary vocabulary;
  ManualClock clock;
  {
    Engine engine({.limits = {.max_step_tokens = 16, .max_sequences = 8, .block_size = 4},
                   .context_length = 128,
                   .blocks_total = 64},
                  &model, &vocabulary, &clock, [](const StepResult&) {});
    engine.Submit(Greedy(1, "abc", 6));
    engine.Step();
    EXPECT_EQ(model.steps_running(), 1u);
  }
  EXPECT_EQ(model.steps_running(), 0u);
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
