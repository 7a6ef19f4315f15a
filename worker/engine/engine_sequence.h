// SPDX-License-Identifier: Apache-2.0
// The engine's own record of a request and of each of its continuations. Private to the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/cache/block_ledger.h"
#include "worker/engine/client_shares.h"
#include "worker/engine/engine.h"
#include "worker/engine/sampler.h"
#include "worker/engine/sequence.h"
#include "worker/engine/step_plan.h"
#include "worker/engine/stop_conditions.h"
#include "worker/engine/token_constraint.h"

namespace rempart::worker {

// What a client is told of a constraint that failed.
inline Failure FailureOf(const absl::Status& constraint) {
  return {
      absl::IsInvalidArgument(constraint) ? FailureCode::kInvalidArgument : FailureCode::kInternal,
      absl::StrCat("the constraint on this request's tokens failed: ", constraint.message()), ""};
}

// The part that the n continuations of one request share. Constant after Accept.
struct Engine::Request {
  SequenceRequest asked;
  int32_t max_new_tokens = 0;
};

struct Engine::Sequence {
  Sequence(std::shared_ptr<const Request> r, int32_t i)
      : request(std::move(r)), index(i), text(request->asked.stop) {}

  const std::shared_ptr<const Request> request;
  const int32_t index;
  ScheduledSequence view;
  SamplingParams sampling;
  std::vector<int32_t> tokens;  // prompt, resumed, generated
  SequenceBlocks page;
  TokenCounts counts;
  TextStream text;
  std::unique_ptr<TokenConstraint> constraint;  // after `tokens`; or null
  std::vector<uint32_t> mask;                   // of its next draw
  Client* client = nullptr;
  // Of the first continuation, until its prompt is computed: the others, which are not scheduled
  // before they are forked from it.
  std::vector<Sequence*> forks;
  bool awaits_fork = false;
  int32_t prompt_computed = 0;  // prompt tokens that passed the model before the first logits
  int32_t prompt_cached = 0;    // the others
  bool has_logits = false;
  bool reported_prompt = false;
  bool ended = false;
  // Tokens that steps which run will add: two between the start of a step ahead and the end of the
  // one before it.
  int32_t in_flight = 0;
  int32_t place_in_flight = 0;  // of the newest among those that its step draws
  int64_t delta_index = -1;     // into deltas_, in this step

  int32_t prompt_count() const { return static_cast<int32_t>(request->asked.prompt_ids.size()); }
  int32_t generated_count() const { return static_cast<int32_t>(tokens.size()) - prompt_count(); }
  // Tokens beyond those that are known and those in flight.
  int32_t may_generate() const { return request->max_new_tokens - generated_count() - in_flight; }
  // Nothing may follow, says its constraint.
  bool is_complete() const { return constraint != nullptr && constraint->IsComplete(); }
  // What may follow depends on a token that is not known.
  bool awaits_token() const { return constraint != nullptr && in_flight > 0; }
  SliceSampling next_draw() const {
    return {&sampling, counts.tokens(), generated_count() + in_flight, mask};
  }
  void CountKnown() { view.tokens_known = static_cast<int32_t>(tokens.size()) + in_flight; }
  void Append(int32_t token_id) {
    tokens.push_back(token_id);
    CountKnown();
    if (sampling.has_penalties()) counts.AddGenerated(token_id);
  }
};

}  // namespace rempart::worker
