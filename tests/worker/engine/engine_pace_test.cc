// SPDX-License-Identifier: Apache-2.0
// engine.maxStepMilliseconds: long prompts that arrive beside decodes are cut so that no decoding
// sequence waits longer than that for its next token, and are computed all the same. Over a model
// whose steps take the time that their tokens cost, by a clock that the test moves.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <random>
#include <string>

#include "tests/worker/engine/engine_bench.h"

namespace rempart::worker {
namespace {

constexpr absl::Duration kMs = absl::Milliseconds(1);
constexpr int32_t kDecoding = 4;
constexpr int32_t kPrompts = 12;
constexpr int32_t kPromptTokens = 1500;

struct Costs {
  double step_ms = 20;
  double decode_ms = 5;     // a slice of one token
  double prefill_ms = 1;    // a token at the start of its prompt,
  double at_the_end = 1.5;  // and so many times that at its end: attention reads what came before
  // Of all prefill.
  double of_prompts_ms() const {
    return kPrompts * kPromptTokens * prefill_ms * (1 + at_the_end) / 2;
  }
};

struct Outcome {
  absl::Duration longest_gap;  // between two tokens of a sequence
  absl::Duration took;         // from the first prompt's arrival to the last one's first token
  int32_t answered = 0;        // prompts that have a token
};

class PaceBench {
 public:
  PaceBench(absl::Duration max_step_time, Costs costs)
      : costs_(costs),
        bench_({.blocks = 16384,
                .context = 8000,
                .max_sequences = 16,
                .max_step_tokens = 512,
                .max_step_time = max_step_time}) {
    bench_.model.on_forward = [this](const StepBatch& batch) {
      bench_.clock.Advance(TimeOf(batch) * kMs);
    };
  }

  // Some sequences decode; then prompts come, one, two or four at a time, before the last ones have
  // all been computed. Each is given `answer_tokens`.
  Outcome Run(int32_t answer_tokens) {
    for (uint64_t id = 1; id <= kDecoding; ++id) {
      bench_.engine.Submit(Greedy(id, std::string(24, static_cast<char>('a' + id)), 4000));
    }
    for (int i = 0; i < 10; ++i) Step();  // the first measurements
    outcome_ = {};
    const absl::Time begin = bench_.clock.Now();
    for (const int burst : {1, 2, 4, 1, 4}) {
      arrived_ += burst;
      for (int i = 0; i < burst; ++i) Submit(answer_tokens);
      while (arrived_ - outcome_.answered > 1 && bench_.clock.Now() - begin < absl::Minutes(10))
        Step();
    }
    while (outcome_.answered < kPrompts && bench_.clock.Now() - begin < absl::Minutes(10)) Step();
    outcome_.took = bench_.clock.Now() - begin;
    for (uint64_t id = 1; id <= kDecoding; ++id) bench_.engine.Cancel(id);
    bench_.RunAll();
    std::cout << "longest gap " << outcome_.longest_gap << ", " << outcome_.answered
              << " prompts in " << outcome_.took << "\n";
    return outcome_;
  }

 private:
  double TimeOf(const StepBatch& batch) {
    double ms = costs_.step_ms;
    for (const SequenceSlice& slice : batch.slices) {
      if (slice.token_ids.size() == 1) {
        ms += costs_.decode_ms;
        continue;
      }
      for (size_t i = 0; i < slice.token_ids.size(); ++i) {
        const double share =
            (static_cast<double>(slice.first_position) + static_cast<double>(i)) / kPromptTokens;
        ms += costs_.prefill_ms * (1 + share * (costs_.at_the_end - 1));
      }
    }
    return ms * std::uniform_real_distribution<double>(0.95, 1.05)(random_);
  }

  void Submit(int32_t answer_tokens) {
    std::string text(kPromptTokens, ' ');
    for (char& byte : text) byte = static_cast<char>('a' + random_() % 26);
    bench_.engine.Submit(Greedy(++last_prompt_, text, answer_tokens));
  }

  void Step() {
    ASSERT_TRUE(bench_.engine.Step());
    const absl::Time now = bench_.clock.Now();
    for (const auto& [id_and_index, answer] : bench_.answers) {
      const uint64_t id = id_and_index.first;
      Seen& seen = seen_[id];
      if (answer.tokens.size() == seen.tokens) continue;
      if (seen.tokens > 0) {
        outcome_.longest_gap = std::max(outcome_.longest_gap, now - seen.last);
      } else if (id > kFirstPrompt) {
        ++outcome_.answered;
      }
      seen = {answer.tokens.size(), now};
    }
  }

  static constexpr uint64_t kFirstPrompt = 100;
  struct Seen {
    size_t tokens = 0;
    absl::Time last;
  };

  const Costs costs_;
  std::mt19937 random_{20267};
  Bench bench_;
  uint64_t last_prompt_ = kFirstPrompt;
  int32_t arrived_ = 0;
  std::map<uint64_t, Seen> seen_;  // by request
  Outcome outcome_;
};

// Of each 100 ms decodes take 40.
TEST(EnginePace, PromptsBesideDecodesKeepTheGapBetweenTokensWithinTheBound) {
  const Costs costs;
  const Outcome outcome = PaceBench(100 * kMs, costs).Run(1);
  EXPECT_LE(outcome.longest_gap, 120 * kMs);
  EXPECT_EQ(outcome.answered, kPrompts);
  EXPECT_LE(outcome.took, 1.2 * costs.of_prompts_ms() / 0.6 * kMs) << "they get what is left";
}

// There are ever more decodes, whose time is never seen without prefill beside them.
TEST(EnginePace, PromptsThatGoOnToDecodeKeepItToo) {
  const Costs costs = {.decode_ms = 2.5};
  const Outcome outcome = PaceBench(100 * kMs, costs).Run(500);
  EXPECT_LE(outcome.longest_gap, 120 * kMs);
  EXPECT_EQ(outcome.answered, kPrompts);
  EXPECT_LE(outcome.took, 1.2 * costs.of_prompts_ms() / 0.4 * kMs);
}

TEST(EnginePace, WithoutABoundTheGapIsAsLongAsAFullStep) {
  const Outcome outcome = PaceBench(absl::ZeroDuration(), {}).Run(1);
  EXPECT_GT(outcome.longest_gap, 500 * kMs);
  EXPECT_EQ(outcome.answered, kPrompts);
}

// 300 ms of decodes: prefill takes as long again, and prompts are not starved.
TEST(EnginePace, WhereDecodesAloneTakeLongerThanTheBoundPromptsTakeAsLong) {
  const Costs costs = {.step_ms = 200, .decode_ms = 25};
  const Outcome outcome = PaceBench(100 * kMs, costs).Run(1);
  EXPECT_LE(outcome.longest_gap, 1.2 * 600 * kMs);
  EXPECT_EQ(outcome.answered, kPrompts);
  EXPECT_LE(outcome.took, 1.2 * costs.of_prompts_ms() / 0.5 * kMs);
}

}  // namespace
}  // namespace rempart::worker
