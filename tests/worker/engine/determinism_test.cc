// SPDX-License-Identifier: Apache-2.0
// What a request gets does not depend on its company: tokens and log-probabilities are the same,
// bit for bit, in random batches, with prompts cut anywhere, with the prefix cache on or off,
// forked or not, preempted or not, whether or not constraints restrict its tokens or those of
// others. The oracle is an engine that runs one sequence at a time and caches nothing. Over the
// fake model, over a real one, and over small ones as they are served.
#include <gtest/gtest.h>

#include "common/clock.h"
#include "tests/worker/engine/fake_group.h"
#include "tests/worker/engine/fake_model.h"
#include "tests/worker/engine/random_traffic.h"
#include "tests/worker/engine/real_model.h"
#include "tests/worker/engine/served_model.h"

namespace rempart::worker {
namespace {

struct Subject {
  ModelRunner* model;
  const Vocabulary* vocabulary;
  TrafficShape shape;
  int32_t block_size;
  int32_t most_blocks;
  ModelRunner* alone = nullptr;  // the oracle's model; null: the same
};

// What has been exercised over all seeds, so that the test cannot pass by doing nothing.
struct Totals {
  uint64_t preemptions = 0, hit_tokens = 0, forks = 0, copies = 0, evictions = 0;
  int compared = 0, cancelled = 0;
  int constrained = 0, failed = 0;  // by their constraint; of continuations
};

Answers Alone(const Subject& subject, const SequenceRequest& request) {
  EngineOptions options;
  options.limits = {.max_step_tokens = 512, .max_sequences = 1, .block_size = subject.block_size};
  options.context_length = subject.shape.context;
  options.blocks_total = subject.most_blocks;
  options.prefix_cache = false;
  ManualClock clock;
  Answers answers;
  Engine engine(options, subject.alone != nullptr ? subject.alone : subject.model,
                subject.vocabulary, &clock, [&](StepResult result) { Collect(result, answers); });
  engine.Submit(request);
  while (engine.Step()) {
  }
  return answers;
}

void CompareWithAlone(const Subject& subject, const SequenceRequest& request, bool cancelled,
                      const Answers& together) {
  Answers alone = Alone(subject, request);
  for (int32_t i = 0; i < request.n; ++i) {
    const Received& got = together.at({request.request_id, i});
    Received expected = alone.at({request.request_id, i});
    EXPECT_EQ(got.endings, 1);
    if (!cancelled && expected.failure.has_value()) {
      ASSERT_TRUE(got.failure.has_value());
      EXPECT_EQ(got.failure->message, expected.failure->message);
    } else if (!cancelled) {
      ASSERT_TRUE(got.finish.has_value() && expected.finish.has_value());
      EXPECT_EQ(got.finish->reason, expected.finish->reason);
      EXPECT_EQ(got.finish->completion_tokens, expected.finish->completion_tokens);
    }
    if (cancelled) {  // as far as it came
      ASSERT_LE(got.tokens.size(), expected.tokens.size());
      expected.tokens.resize(got.tokens.size());
      expected.logprobs.resize(std::min(got.logprobs.size(), expected.logprobs.size()));
    }
    EXPECT_EQ(got.tokens, expected.tokens) << "request " << request.request_id << "." << i;
    EXPECT_EQ(got.logprobs, expected.logprobs) << "request " << request.request_id << "." << i;
  }
}

void RunSeed(const Subject& subject, uint64_t seed, int request_count, Totals& totals) {
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Draw draw(seed);
  const EngineOptions options =
      RandomOptions(draw, subject.shape, subject.block_size, subject.most_blocks);
  ManualClock clock;
  Answers answers;
  Engine engine(options, subject.model, subject.vocabulary, &clock,
                [&](StepResult result) { Collect(result, answers); });
  std::map<uint64_t, SequenceRequest> requests;
  std::map<uint64_t, bool> cancelled;
  while (static_cast<int>(requests.size()) < request_count) {
    for (int burst = draw.OneIn(6) ? draw(1, 6) : 0; burst > 0; --burst) {
      const uint64_t id = requests.size() + 1;
      requests[id] = RandomRequest(draw, id, subject.shape);
      engine.Submit(requests[id]);
    }
    if (draw.OneIn(40) && !requests.empty()) {
      const uint64_t id = static_cast<uint64_t>(draw(1, static_cast<int>(requests.size())));
      engine.Cancel(id);
      cancelled[id] = true;
      ++totals.cancelled;
    }
    engine.Step();
  }
  for (int step = 0; engine.Step(); ++step) ASSERT_LT(step, 100'000);
  const EngineLoad load = engine.load();
  EXPECT_EQ(load.blocks_used, 0);
  totals.preemptions += load.preemptions;
  totals.hit_tokens += load.prefix_hit_tokens;
  totals.forks += load.forks;
  totals.copies += load.blocks_copied;
  totals.evictions += load.prefix_evictions;
  for (const auto& [id, request] : requests) {
    ASSERT_NO_FATAL_FAILURE(CompareWithAlone(subject, request, cancelled[id], answers));
    totals.constrained += request.constraint != nullptr ? request.n : 0;
    for (int32_t i = 0; i < request.n; ++i) {
      totals.failed += answers.at({id, i}).failure.has_value() ? 1 : 0;
    }
    ++totals.compared;
  }
}

// `few`: of so many times fewer requests.
void ExpectHardEnough(const Totals& totals, uint64_t few = 1) {
  std::cout << totals.compared << " requests: " << totals.preemptions << " preemptions, "
            << totals.hit_tokens << " tokens from the cache, " << totals.forks << " forks, "
            << totals.copies << " copies, " << totals.evictions << " evictions, "
            << totals.cancelled << " cancelled\n";
  EXPECT_GT(totals.preemptions, 50 / few);
  EXPECT_GT(totals.hit_tokens, 1000 / few);
  EXPECT_GT(totals.forks, 20 / few);
  EXPECT_GT(totals.copies, 20 / few);
  EXPECT_GT(totals.evictions, 50 / few);
  EXPECT_GT(totals.cancelled, 0);
}

TEST(Determinism, OfTheFakeModelInRandomCompany) {
  FakeModel model(40, 4);
  model.end_logit = 6.0f;
  FakeVocabulary vocabulary;
  Totals totals;
  for (uint64_t seed = 1; seed <= 60 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&model, &vocabulary, {kFakeEnd, 64}, 4, 40}, seed, 40, totals);
  }
  ExpectHardEnough(totals);
}

// Now it draws a token itself, now it leaves that to the engine: in company and alone at other
// times.
TEST(Determinism, OfTheFakeModelThatDrawsSomeTokensItself) {
  FakeModel model(40, 4);
  model.end_logit = 6.0f;
  FakeVocabulary vocabulary;
  Draw draw(77);
  int64_t drawn = 0;
  model.draws = [&] {
    const bool yes = !draw.OneIn(3);
    drawn += yes ? 1 : 0;
    return yes;
  };
  Totals totals;
  for (uint64_t seed = 101; seed <= 160 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&model, &vocabulary, {kFakeEnd, 64}, 4, 40}, seed, 40, totals);
  }
  ExpectHardEnough(totals);
  EXPECT_GT(drawn, 1000);
}

// Steps are begun before the tokens of the one before are known, as often as that may be: now and
// then the model leaves a token to the engine, and some requests want alternatives or fork.
TEST(Determinism, OfStepsThatAreBegunAhead) {
  FakeModel model(40, 4, /*has_pipeline=*/true), plain(40, 4);
  model.end_logit = plain.end_logit = 6.0f;
  Draw draw(78);
  model.draws = [&] { return !draw.OneIn(30); };
  FakeVocabulary vocabulary;
  Totals totals;
  for (uint64_t seed = 201; seed <= 280 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&model, &vocabulary, {kFakeEnd, 64}, 4, 40, &plain}, seed, 40, totals);
    EXPECT_EQ(model.steps_running(), 0u);
  }
  ExpectHardEnough(totals);
  std::cout << model.ahead_count << " of " << model.forward_count << " steps begun ahead\n";
  EXPECT_GT(model.ahead_count, model.forward_count / 10);
}

// The same, with nothing that keeps steps from being begun ahead but memory.
TEST(Determinism, OfStepsThatNearlyAllAreBegunAhead) {
  FakeModel model(40, 4, /*has_pipeline=*/true), plain(40, 4);
  model.end_logit = plain.end_logit = 6.0f;
  FakeVocabulary vocabulary;
  Totals totals;
  for (uint64_t seed = 301; seed <= 360 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&model, &vocabulary, {kFakeEnd, 64, /*draws_alone=*/true}, 4, 40, &plain}, seed, 40,
            totals);
  }
  std::cout << model.ahead_count << " of " << model.forward_count << " steps begun ahead\n";
  EXPECT_GT(model.ahead_count, model.forward_count / 2);
  EXPECT_GT(totals.preemptions, 50u);
  EXPECT_GT(totals.hit_tokens, 1000u);
  EXPECT_GT(totals.evictions, 50u);
}

// By a group of two ranks, of which one draws, and the other one computes the same.
TEST(Determinism, OfAGroupWhoseRanksBeginStepsAhead) {
  FakeModel first(40, 4, /*has_pipeline=*/true), second(40, 4), plain(40, 4);
  first.end_logit = second.end_logit = plain.end_logit = 6.0f;
  Draw draw(79);
  first.draws = [&] { return !draw.OneIn(60); };
  FakeGroup group(first, second);
  FakeVocabulary vocabulary;
  Totals totals;
  for (uint64_t seed = 401; seed <= 430 && !testing::Test::HasFailure(); ++seed) {
    const bool draws_alone = seed % 2 == 0;
    RunSeed({&group.runner(), &vocabulary, {kFakeEnd, 64, draws_alone}, 4, 40, &plain}, seed, 40,
            totals);
  }
  EXPECT_EQ(group.different_count(), 0);
  EXPECT_EQ(first.forward_count, second.forward_count);
  EXPECT_GT(first.ahead_count, first.forward_count / 3);
  std::cout << first.ahead_count << " of " << first.forward_count << " steps begun ahead, "
            << totals.preemptions << " preemptions, " << totals.forks << " forks\n";
  EXPECT_GT(totals.preemptions, 25u);
  EXPECT_GT(totals.forks, 5u);
  EXPECT_GT(totals.cancelled, 0);
}

// Of three requests one is constrained: its masks follow what it alone has said.
TEST(Determinism, OfConstrainedRequestsInRandomCompany) {
  FakeVocabulary vocabulary;
  FakeModel plain(40, 4);
  plain.end_logit = 6.0f;
  const TrafficShape shape = {
      .vocabulary = kFakeVocabulary, .context = 64, .constrained_one_in = 3, .end = kFakeEnd};
  for (const bool is_pipelined : {false, true}) {
    FakeModel model(40, 4, is_pipelined);
    model.end_logit = 6.0f;
    Draw draw(80);
    model.draws = [&] { return !draw.OneIn(30); };
    Totals totals;
    for (uint64_t seed = 501; seed <= 560 && !testing::Test::HasFailure(); ++seed) {
      RunSeed({&model, &vocabulary, shape, 4, 40, &plain}, seed, 40, totals);
    }
    ExpectHardEnough(totals);
    std::cout << totals.constrained << " continuations constrained, " << totals.failed
              << " failed, " << model.ahead_count << " of " << model.forward_count
              << " steps begun ahead\n";
    EXPECT_GT(totals.constrained, 500);
    EXPECT_GT(totals.failed, 50);
    EXPECT_LT(totals.failed, totals.constrained / 2);
    EXPECT_GT(model.ahead_count, is_pipelined ? model.forward_count / 10 : -1);
  }
}

// The rank that draws has the masks, the other one needs none.
TEST(Determinism, OfConstrainedRequestsOfAGroup) {
  FakeModel first(40, 4, /*has_pipeline=*/true), second(40, 4), plain(40, 4);
  first.end_logit = second.end_logit = plain.end_logit = 6.0f;
  FakeGroup group(first, second);
  FakeVocabulary vocabulary;
  const TrafficShape shape = {.vocabulary = kFakeVocabulary,
                              .context = 64,
                              .draws_alone = true,
                              .constrained_one_in = 3,
                              .end = kFakeEnd};
  Totals totals;
  for (uint64_t seed = 601; seed <= 610 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&group.runner(), &vocabulary, shape, 4, 40, &plain}, seed, 40, totals);
  }
  EXPECT_EQ(group.different_count(), 0);
  EXPECT_EQ(first.forward_count, second.forward_count);
  EXPECT_GT(first.ahead_count, first.forward_count / 4);
  EXPECT_GT(totals.constrained, 100);
  EXPECT_GT(totals.failed, 10);
}

TEST(Determinism, OfConstrainedRequestsToARealModel) {
  RealModel model;
  ASSERT_TRUE(model.ok());
  PlainVocabulary vocabulary;
  const TrafficShape shape = {.vocabulary = 512, .context = 96, .constrained_one_in = 2, .end = 2};
  Totals totals;
  for (uint64_t seed = 701; seed <= 704 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&model, &vocabulary, shape, kStoriesBlockSize, 24}, seed, 40, totals);
  }
  EXPECT_GT(totals.constrained, 60);
  EXPECT_GT(totals.preemptions, 10u);
  EXPECT_GT(totals.hit_tokens, 300u);
  EXPECT_GT(totals.forks, 5u);
}

TEST(Determinism, OfARealModelInRandomCompany) {
  RealModel model;
  ASSERT_TRUE(model.ok());
  PlainVocabulary vocabulary;
  Totals totals;
  for (uint64_t seed = 1; seed <= 12 && !testing::Test::HasFailure(); ++seed) {
    RunSeed({&model, &vocabulary, {512, 96}, kStoriesBlockSize, 24}, seed, 40, totals);
  }
  ExpectHardEnough(totals);
}

// All of the models on the best tier of this machine, and each other tier with one of them.
TEST(Determinism, OfQuantisedModelsWithF16KvInRandomCompany) {
  PlainVocabulary vocabulary;
  const std::vector<MixedModelSpec> specs = MixedModelSpecs();
  const auto run = [&](size_t index, const kernels::Ops& ops, int requests, Totals& totals) {
    SCOPED_TRACE(testing::Message() << specs[index].name << " on " << ops.name);
    ServedModel model(specs[index], ops);
    ASSERT_TRUE(model.ok());
    const TrafficShape shape = {model.vocabulary_size(), 96};
    RunSeed({&model, &vocabulary, shape, ServedModel::kBlockSize, ServedModel::kBlocks},
            500 + index, requests, totals);
  };
  Totals on_best, on_others;
  for (size_t i = 0; i < specs.size(); ++i) run(i, kernels::BestOps(), 24, on_best);
  ExpectHardEnough(on_best, 4);
  size_t next = 0;
  for (const kernels::OpsTier& tier : kernels::AllOps()) {
    if (!tier.is_supported || tier.is_twin || tier.ops == &kernels::BestOps()) continue;
    if (tier.ops != &kernels::ReferenceOps()) run(next++ % specs.size(), *tier.ops, 6, on_others);
  }
}

}  // namespace
}  // namespace rempart::worker
