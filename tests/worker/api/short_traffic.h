// SPDX-License-Identifier: Apache-2.0
// Short random requests to a loaded model, some of them cancelled: for tests that compare steps
// begun ahead with steps begun one by one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "common/clock.h"
#include "tests/worker/engine/random_traffic.h"
#include "worker/api/load_model.h"

namespace rempart::worker {

// Short prompts, which no step cuts, because a GPU's last bits depend on where a prompt is cut.
inline SequenceRequest ShortRequest(Draw& draw, uint64_t id) {
  SequenceRequest request = RandomRequest(draw, id, {320, 96, !draw.OneIn(6)});
  request.prompt_ids.resize(2, 7);
  request.max_tokens = draw(1, 16);
  request.n = 1;
  if (draw.OneIn(3)) request.sampling.logit_bias = {{5, 2.0f}, {300, -4.0f}};
  if (draw.OneIn(3)) request.sampling.repetition_penalty = 1.3f;
  if (draw.OneIn(3)) request.stop = {"e", "the"};
  return request;
}

// Eight requests, some of them cancelled, with a few steps between one and the next. `constrained`:
// every second one by a constraint of its own.
inline Answers ServeShort(const LoadedModel& model, ModelRunner& runner,
                          std::set<uint64_t>& cancelled, bool constrained = false) {
  Draw draw(3);
  ManualClock clock;
  Answers answers;
  Engine engine(model.engine, &runner, model.vocabulary.get(), &clock,
                [&](const StepResult& result) { Collect(result, answers); });
  for (uint64_t id = 1; id <= 8; ++id) {
    SequenceRequest request = ShortRequest(draw, id);
    if (constrained && id % 2 == 0) {
      const TestRules rules = {.vocabulary = 320, .end = 2, .one_in = 50};
      request.constraint = std::make_shared<TestConstraint>(rules, id);
    }
    engine.Submit(std::move(request));
    if (draw.OneIn(6)) {
      cancelled.insert(static_cast<uint64_t>(draw(1, static_cast<int>(id))));
      engine.Cancel(*cancelled.rbegin());
    }
    for (int steps = draw(0, 9); steps > 0; --steps) engine.Step();
  }
  while (engine.Step()) {
  }
  EXPECT_EQ(engine.load().blocks_used, 0);
  return answers;
}

// Of what was cancelled one of the two may have a step more.
inline void ExpectTheSame(const Answers& expected, const Answers& actual,
                          const std::set<uint64_t>& cancelled) {
  ASSERT_EQ(expected.size(), actual.size());
  size_t tokens = 0;
  for (const auto& [key, received] : expected) {
    Received other = actual.at(key), wanted = received;
    EXPECT_FALSE(other.failure.has_value()) << other.failure->message;
    EXPECT_EQ(other.endings, 1);
    if (cancelled.contains(key.first)) {
      const size_t both = std::min(wanted.tokens.size(), other.tokens.size());
      const size_t logprobs = std::min(wanted.logprobs.size(), other.logprobs.size());
      for (Received* each : {&wanted, &other}) {
        each->tokens.resize(both);
        each->logprobs.resize(logprobs);
      }
    }
    EXPECT_EQ(wanted.tokens, other.tokens) << "request " << key.first;
    EXPECT_EQ(wanted.logprobs, other.logprobs) << "request " << key.first;
    tokens += wanted.tokens.size();
  }
  EXPECT_GT(tokens, 35u);
}

}  // namespace rempart::worker
