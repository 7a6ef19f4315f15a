// SPDX-License-Identifier: Apache-2.0
// What the engine is asked for and what it answers: plain data, without protobuf.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "worker/engine/token_constraint.h"
#include "worker/model/sampling.h"

namespace rempart::worker {

// One request: a prompt and up to n continuations. Validated by the border (worker/api), except for
// what only the engine knows: the room in the context.
struct SequenceRequest {
  uint64_t request_id = 0;  // unique in this engine
  std::vector<int32_t> prompt_ids;
  SamplingParams sampling;
  bool seed_was_drawn = false;  // report the seed: the client gave none
  int32_t max_tokens = 0;       // 0: as many as the context allows
  std::vector<std::string> stop;
  int32_t n = 1;
  int32_t priority = 0;
  // Who asks: of equal priorities the client that had less goes first, and prompts of one client
  // are never found in the cache by another.
  std::string client;
  // Prompts with different salts share nothing in the prefix cache either.
  std::string cache_salt;
  absl::Time deadline = absl::InfiniteFuture();
  // Generated and delivered elsewhere: generation continues after them; they are not sent again.
  std::vector<int32_t> resume_tokens;
  // What the generated tokens must obey, before the first of them; null: nothing. Each continuation
  // copies it.
  std::shared_ptr<const TokenConstraint> constraint;
  // Sent before the completion, in the first delta.
  std::string echo_text;
};

enum class FinishReason { kStop, kLength, kCancelled, kDeadline };
enum class FailureCode {
  kInvalidArgument,
  kContextOverflow,
  kOverloaded,
  kInternal,
  kDraining,
  kGroupLost,
};

struct Finish {
  FinishReason reason;
  std::string matched_stop;
  int32_t completion_tokens = 0;  // with the resumed ones
};

struct Failure {
  FailureCode code;
  std::string message;  // for the client
  std::string field;
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;
};

struct SampledLogprob {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // best first
};

struct PromptFacts {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of those, not computed: the prefix cache had them
  std::optional<uint64_t> seed;
};

// What one continuation gained in one step. Its last delta has `finish` or `failure`, no other has.
struct SequenceDelta {
  uint64_t request_id = 0;
  int32_t index = 0;
  std::vector<int32_t> token_ids;
  std::string text;  // whole UTF-8 characters
  std::vector<SampledLogprob> logprobs;
  std::optional<PromptFacts> prompt;  // in the first delta
  std::optional<Finish> finish;
  std::optional<Failure> failure;
};

}  // namespace rempart::worker
