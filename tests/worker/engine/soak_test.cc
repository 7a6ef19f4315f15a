// SPDX-License-Identifier: Apache-2.0
// Random requests, cancellations and preemptions over a real model for a while:
// REMPART_SOAK_SECONDS (3 when unset; 1800 for the long one). Nothing may leak or drift: no block
// is held at the end, what is held, cached and free always adds up, memory stops growing, and one
// probe request, asked again and again among the others, always gets the same answer.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>
#include <iostream>

#include "absl/time/clock.h"
#include "tests/worker/engine/random_traffic.h"
#include "tests/worker/engine/real_model.h"
#include "worker/engine/engine_thread.h"

namespace rempart::worker {
namespace {

constexpr TrafficShape kShape = {512, 160};
constexpr int kRequestsPerRound = 60;
// Growth of the heap between rounds that a map of answers, or the allocator, may cause.
constexpr int64_t kHeapSlack = int64_t{1} << 20;

absl::Duration SoakTime() {
  const char* seconds = std::getenv("REMPART_SOAK_SECONDS");
  return absl::Seconds(seconds == nullptr ? 3 : std::atoi(seconds));
}

int64_t HeapBytes() { return static_cast<int64_t>(mallinfo2().uordblks); }

SequenceRequest Probe(uint64_t id) {
  SequenceRequest request;
  request.request_id = id;
  for (int i = 0; i < 70; ++i) request.prompt_ids.push_back((i * 11 + 37) % kShape.vocabulary);
  request.max_tokens = 40;
  request.sampling.seed = 1;
  request.sampling.top_logprobs = 2;
  request.sampling.ignore_eos = true;
  request.n = 2;
  return request;
}

class Soak {
 public:
  explicit Soak(ModelRunner* model)
      : engine_(Options(), model, &vocabulary_, &clock_, [this](StepResult result) {
          MutexLock lock(&mu_);
          Collect(result, answers_);
        }) {}

  // Traffic of one seed, from this thread to the engine's, until all of it has ended.
  void Round(uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Draw draw(seed);
    const uint64_t first = last_id_ + 1;
    int32_t expected = 0;
    for (int i = 0; i < kRequestsPerRound; ++i) {
      const SequenceRequest request =
          i % 20 == 10 ? Probe(++last_id_) : RandomRequest(draw, ++last_id_, kShape);
      if (i % 20 == 10) probes_.push_back(request.request_id);
      expected += request.n;
      engine_.Submit(request);
      if (draw.OneIn(8)) {
        const uint64_t victim = first + static_cast<uint64_t>(draw(0, i));
        if (std::find(probes_.begin(), probes_.end(), victim) == probes_.end()) {
          engine_.Cancel(victim);
        }
      }
      if (draw.OneIn(4)) absl::SleepFor(absl::Milliseconds(draw(1, 20)));
    }
    AwaitEndings(expected);
    CheckBooks();
    CheckProbes();
    ++rounds_;
  }

  int rounds() const { return rounds_; }
  EngineLoad load() const { return engine_.load(); }
  Engine& engine() { return engine_; }

 private:
  static EngineOptions Options() {
    EngineOptions options;
    options.limits = {.max_step_tokens = 64, .max_sequences = 12, .block_size = kStoriesBlockSize};
    options.context_length = kShape.context;
    options.blocks_total = 40;  // four sequences of full length
    options.max_step_time = absl::Milliseconds(20);
    return options;
  }

  void AwaitEndings(int32_t expected) {
    const auto all_ended = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      int32_t endings = 0;
      for (const auto& [key, received] : answers_) endings += received.endings;
      return endings == expected;
    };
    MutexLock lock(&mu_);
    ASSERT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&all_ended), absl::Minutes(5)));
  }

  void CheckBooks() {
    // The figures are published just before the sink hears of the last ending.
    const EngineLoad load = engine_.load();
    ASSERT_EQ(load.blocks_used, 0);
    ASSERT_LE(load.blocks_cached, load.blocks_total);
    ASSERT_EQ(load.running + load.waiting, 0);
  }

  void CheckProbes() {
    MutexLock lock(&mu_);
    for (const uint64_t id : probes_) {
      for (int32_t i = 0; i < 2; ++i) {
        const Received& received = answers_.at({id, i});
        ASSERT_EQ(received.tokens.size(), 40u);
        if (probe_answers_.count(i) == 0) probe_answers_[i] = received;
        ASSERT_TRUE(received == probe_answers_[i]) << "the answer has drifted";
      }
    }
    probes_.clear();
    answers_.clear();
  }

  PlainVocabulary vocabulary_;
  SystemClock clock_;
  Mutex mu_;
  Answers answers_ ABSL_GUARDED_BY(mu_);
  std::map<int32_t, Received> probe_answers_;
  std::vector<uint64_t> probes_;
  uint64_t last_id_ = 0;
  int rounds_ = 0;
  Engine engine_;
};

TEST(Soak, NothingLeaksAndNothingDrifts) {
  RealModel model;
  ASSERT_TRUE(model.ok());
  Soak soak(&model);
  EngineThread thread(&soak.engine());
  const absl::Time end = absl::Now() + SoakTime();
  int64_t heap = 0;
  for (uint64_t seed = 1; seed <= 3 || absl::Now() < end; ++seed) {
    ASSERT_NO_FATAL_FAILURE(soak.Round(seed));
    if (seed == 3) heap = HeapBytes();
  }
  const EngineLoad load = soak.load();
  std::cout << soak.rounds() << " rounds, " << load.steps << " steps, " << load.generated_tokens
            << " tokens, " << load.preemptions << " preemptions, " << load.forks << " forks, "
            << load.prefix_hit_tokens << " tokens from the cache, heap " << heap << " to "
            << HeapBytes() << " bytes\n";
  EXPECT_GT(load.preemptions, 10u);
  EXPECT_GT(load.forks, 10u);
  EXPECT_GT(load.prefix_hit_tokens, 100u);
  EXPECT_LT(HeapBytes() - heap, kHeapSlack) << "it grows";
}

}  // namespace
}  // namespace rempart::worker
