// SPDX-License-Identifier: Apache-2.0
// How a token is drawn from logits: plain data, for whoever draws it, the engine on the host
// (worker/engine/sampler.h) or a model on its device.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace rempart::worker {

struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // 0: off
  float min_p = 0.0f;               // [0, 1]
  float frequency_penalty = 0.0f;   // [-2, 2]
  float presence_penalty = 0.0f;    // [-2, 2]
  float repetition_penalty = 1.0f;  // > 0; 1: off
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias = {};
  // Alternatives beside the chosen token; -1: no log-probabilities at all.
  int32_t top_logprobs = -1;
  bool ignore_eos = false;

  bool has_penalties() const {
    return repetition_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f;
  }
};

// A token that occurred, in the prompt or in the answer.
struct TokenCount {
  int32_t token_id = 0;
  int32_t generated = 0;  // times in the answer
};

// 32-bit words of a mask of tokens.
constexpr int64_t MaskWords(int64_t vocabulary_size) { return (vocabulary_size + 31) / 32; }

// One draw. No token is in logit_bias or in `counts` twice.
struct SliceSampling {
  const SamplingParams* params = nullptr;
  // Empty without penalties. Of a slice that follows a token which is not known yet: without it.
  absl::Span<const TokenCount> counts;
  int64_t position = 0;  // of the generated token, from 0
  // Of [MaskWords(vocabulary)] words: a token may be drawn where bit id % 32 of word id / 32 is
  // set. Bits behind the vocabulary mean nothing. Empty: any token may.
  absl::Span<const uint32_t> mask = {};
};

// What a model has drawn.
struct DrawnToken {
  bool is_drawn = false;  // else the model gives logits, from which the host draws
  // -1: the logits are not numbers; -2: of no token that the mask allows is the logit finite.
  int32_t token_id = -1;
  float logprob = 0;  // where params->top_logprobs is 0
};

}  // namespace rempart::worker
