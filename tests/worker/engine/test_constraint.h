// SPDX-License-Identifier: Apache-2.0
// Constraints whose masks a test can redo. What one allows depends on all tokens that it has
// accepted and on their order: one that is missed, or accepted twice, allows others.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/engine/token_constraint.h"
#include "worker/model/sampling.h"

namespace rempart::worker {

// How often constraints were asked, and how many there are.
struct ConstraintCounts {
  int alive = 0, copies = 0, masks = 0, accepted = 0;
};

struct TestRules {
  int32_t vocabulary = 0;
  int32_t end = -1;                   // a token that may come after every third token; -1: none
  int32_t one_in = 3;                 // of the others so many may come
  int32_t complete_after = 0;         // tokens; 0: never
  std::vector<int32_t> exactly = {};  // these tokens, one after the other, and no others
  // What goes wrong, after so many tokens; -1: nothing.
  int32_t empty_after = -1, fails_mask_after = -1, fails_accept_after = -1;
  bool fails_copy = false;
  ConstraintCounts* counts = nullptr;
};

class TestConstraint : public TokenConstraint {
 public:
  TestConstraint(const TestRules& rules, uint64_t seed) : rules_(rules), state_(seed) { Count(1); }
  TestConstraint(const TestConstraint& other)
      : TokenConstraint(other), rules_(other.rules_), state_(other.state_), count_(other.count_) {
    Count(1);
  }
  TestConstraint& operator=(const TestConstraint&) = delete;
  ~TestConstraint() override { Count(-1); }

  absl::StatusOr<std::unique_ptr<TokenConstraint>> Copy() const override {
    if (rules_.fails_copy) return absl::ResourceExhaustedError("no room for another one");
    if (rules_.counts != nullptr) ++rules_.counts->copies;
    return std::make_unique<TestConstraint>(*this);
  }

  absl::Status FillMask(absl::Span<uint32_t> mask) override {
    EXPECT_FALSE(IsComplete()) << "nothing may follow";
    EXPECT_EQ(mask.size(), static_cast<size_t>(MaskWords(rules_.vocabulary)));
    EXPECT_TRUE(std::all_of(mask.begin(), mask.end(), [](uint32_t word) { return word == 0; }));
    if (rules_.counts != nullptr) ++rules_.counts->masks;
    if (count_ == rules_.fails_mask_after) return absl::InvalidArgumentError("too deep a rule");
    // Behind the vocabulary, where it means nothing.
    if (rules_.vocabulary % 32 != 0) mask.back() |= 1u << 31;
    for (int32_t id = 0; id < rules_.vocabulary && count_ != rules_.empty_after; ++id) {
      if (Allows(id)) mask[id / 32] |= 1u << (id % 32);
    }
    return absl::OkStatus();
  }

  absl::Status Accept(int32_t token_id) override {
    EXPECT_TRUE(Allows(token_id)) << "token " << token_id << " after " << count_;
    if (count_ == rules_.fails_accept_after) return absl::InternalError("it has lost its way");
    if (rules_.counts != nullptr) ++rules_.counts->accepted;
    state_ = Mix(state_ * 31 + static_cast<uint64_t>(token_id) + 1);
    ++count_;
    return absl::OkStatus();
  }

  bool IsComplete() const override {
    if (!rules_.exactly.empty()) return count_ == static_cast<int32_t>(rules_.exactly.size());
    return rules_.complete_after > 0 && count_ == rules_.complete_after;
  }

  bool Allows(int32_t id) const {
    if (!rules_.exactly.empty()) return id == rules_.exactly[static_cast<size_t>(count_)];
    if (id == rules_.end) return count_ % 3 == 2;
    return id == static_cast<int32_t>(state_ % static_cast<uint64_t>(rules_.vocabulary)) ||
           Mix(state_ ^ static_cast<uint64_t>(id)) % static_cast<uint64_t>(rules_.one_in) == 0;
  }

 private:
  static uint64_t Mix(uint64_t value) {
    value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15u;
    return value ^ (value >> 29);
  }
  void Count(int by) const {
    if (rules_.counts != nullptr) rules_.counts->alive += by;
  }

  const TestRules rules_;
  uint64_t state_;
  int32_t count_ = 0;
};

// The answer obeys, token by token; the one that ended it may be the model's end.
inline void ExpectObeys(const TestRules& rules, uint64_t seed, const std::vector<int32_t>& tokens,
                        int32_t end) {
  TestRules silent = rules;
  silent.counts = nullptr;
  silent.fails_accept_after = -1;
  TestConstraint replay(silent, seed);
  for (size_t i = 0; i < tokens.size(); ++i) {
    ASSERT_FALSE(replay.IsComplete()) << "it goes on after token " << i;
    ASSERT_TRUE(replay.Allows(tokens[i])) << "token " << i << " is " << tokens[i];
    if (tokens[i] == end && i + 1 == tokens.size()) return;
    ASSERT_TRUE(replay.Accept(tokens[i]).ok());
  }
}

}  // namespace rempart::worker
