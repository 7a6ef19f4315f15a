// SPDX-License-Identifier: Apache-2.0
// Seeded random requests and engine shapes, and what becomes of the requests: for tests that
// compare an engine under load with one that runs each request alone.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/engine/test_constraint.h"
#include "worker/engine/engine.h"

namespace rempart::worker {

// Everything that one continuation received.
struct Received {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // of the chosen and of the alternatives, in order
  std::optional<Finish> finish;
  std::optional<Failure> failure;
  int endings = 0;
  bool operator==(const Received& other) const {
    return tokens == other.tokens && logprobs == other.logprobs;
  }
};

using Answers = std::map<std::pair<uint64_t, int32_t>, Received>;

inline void Collect(const StepResult& result, Answers& answers) {
  for (const SequenceDelta& delta : result.deltas) {
    Received& received = answers[{delta.request_id, delta.index}];
    EXPECT_EQ(received.endings, 0) << "a delta after the end";
    received.tokens.insert(received.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
    for (const SampledLogprob& sampled : delta.logprobs) {
      received.logprobs.push_back(sampled.chosen.logprob);
      for (const TokenLogprob& top : sampled.top) received.logprobs.push_back(top.logprob);
    }
    if (delta.finish) received.finish = delta.finish, ++received.endings;
    if (delta.failure) received.failure = delta.failure, ++received.endings;
  }
}

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  int operator()(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int count) { return (*this)(1, count) == 1; }

 private:
  std::mt19937_64 random_;
};

struct TrafficShape {
  int32_t vocabulary = 0;
  int32_t context = 0;  // of prompt and completion
  // Nothing that a model which draws needs the engine for: no alternatives and no forks.
  bool draws_alone = false;
  // Of so many requests one has a constraint; 0: none has.
  int32_t constrained_one_in = 0;
  int32_t end = -1;  // the token that ends generation, for constraints
};

// A constraint of any kind; now and then one that fails.
inline TestRules RandomRules(Draw& draw, const TrafficShape& shape) {
  TestRules rules;
  rules.vocabulary = shape.vocabulary;
  rules.end = draw.OneIn(2) ? shape.end : -1;
  rules.one_in = draw.OneIn(2) ? 2 : draw(10, 200);
  if (draw.OneIn(3)) rules.complete_after = draw(1, 12);
  if (draw.OneIn(8)) rules.empty_after = draw(0, 8);
  if (draw.OneIn(8)) rules.fails_mask_after = draw(0, 8);
  if (draw.OneIn(8)) rules.fails_accept_after = draw(0, 8);
  return rules;
}

// Prompts of three families that share their starts; every way of sampling; several continuations.
inline SequenceRequest RandomRequest(Draw& draw, uint64_t id, const TrafficShape& shape) {
  SequenceRequest request;
  request.request_id = id;
  const int length = draw(1, shape.context * 3 / 4);
  const int common = draw(length / 2, length);
  const int family = draw(1, 3);
  for (int i = 0; i < length; ++i) {
    request.prompt_ids.push_back(i < common ? (family * 37 + i * 11) % shape.vocabulary
                                            : draw(0, shape.vocabulary - 1));
  }
  request.max_tokens = draw(1, shape.context - length);
  request.n = draw.OneIn(4) ? draw(2, 5) : 1;
  request.priority = draw(-1, 1);
  request.client = draw.OneIn(2) ? "a" : "b";
  SamplingParams& sampling = request.sampling;
  sampling.temperature = draw.OneIn(3) ? 0.0f : 0.1f * static_cast<float>(draw(3, 15));
  sampling.seed = static_cast<uint64_t>(draw(0, 1 << 30));
  if (draw.OneIn(3)) sampling.top_k = draw(1, 40);
  if (draw.OneIn(3)) sampling.top_p = 0.1f * static_cast<float>(draw(3, 9));
  if (draw.OneIn(4)) sampling.presence_penalty = 0.5f;
  if (draw.OneIn(4)) sampling.repetition_penalty = 1.2f;
  if (draw.OneIn(2)) sampling.top_logprobs = draw(0, 5);
  sampling.ignore_eos = draw.OneIn(3);
  if (shape.draws_alone) {
    request.n = 1;
    sampling.top_logprobs = std::min(sampling.top_logprobs, 0);
  }
  if (shape.constrained_one_in > 0 && draw.OneIn(shape.constrained_one_in)) {
    request.constraint = std::make_shared<TestConstraint>(RandomRules(draw, shape), id);
  }
  return request;
}

// An engine of random size: sometimes too small for the load, with and without prefix cache.
inline EngineOptions RandomOptions(Draw& draw, const TrafficShape& shape, int32_t block_size,
                                   int32_t most_blocks) {
  EngineOptions options;
  options.limits.block_size = block_size;
  options.limits.max_sequences = draw(1, 10);
  options.limits.max_step_tokens = draw(options.limits.max_sequences, 80);
  options.limits.aging_steps = draw(1, 100);
  options.context_length = shape.context;
  options.blocks_total = draw((shape.context + block_size - 1) / block_size, most_blocks);
  options.prefix_cache = !draw.OneIn(4);
  return options;
}

}  // namespace rempart::worker
