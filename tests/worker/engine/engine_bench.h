// SPDX-License-Identifier: Apache-2.0
// An engine over the fake model, what its requests receive, and what the model says by itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "tests/worker/engine/fake_model.h"
#include "worker/engine/engine.h"

namespace rempart::worker {

inline std::vector<int32_t> Ids(const std::string& text) {
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
  bool is_pipelined = false;  // the model, which then draws all that it may
  absl::Duration max_step_time = absl::ZeroDuration();
};

class Bench {
 public:
  explicit Bench(Setup setup = {})
      : model(setup.blocks, 4, setup.is_pipelined),
        engine({.limits = {.max_step_tokens = setup.max_step_tokens,
                           .max_sequences = setup.max_sequences,
                           .block_size = 4},
                .context_length = setup.context,
                .blocks_total = setup.blocks,
                .max_waiting = setup.max_waiting,
                .prefix_cache = setup.prefix_cache,
                .max_step_time = setup.max_step_time},
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

inline SequenceRequest Greedy(uint64_t id, const std::string& prompt, int32_t max_tokens) {
  SequenceRequest request;
  request.request_id = id;
  request.prompt_ids = Ids(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

// What the fake model says greedily, computed without engine, blocks or chunks.
inline std::vector<int32_t> Expected(std::vector<int32_t> context, int32_t count) {
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

}  // namespace rempart::worker
