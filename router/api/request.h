// SPDX-License-Identifier: Apache-2.0
// What every dialect turns its bytes into, and what it turns back into bytes. Plain data; no
// dialect's words and no wire's words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace rempart::router {

struct Message {
  std::string role;
  std::string content;
  std::string name;
  std::string tool_calls_json;  // array in OpenAI's spelling; empty: none
  std::string tool_call_id;
  bool content_is_null = false;
};

// One prompt; exactly one of the three is used.
struct Prompt {
  enum class Kind { kChat, kText, kTokenIds };
  Kind kind = Kind::kChat;
  std::vector<Message> messages;
  std::string text;
  std::vector<int32_t> token_ids;
};

// Absent: the model's own default.
struct Sampling {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> frequency_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> repetition_penalty;
  std::optional<int64_t> seed;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<int32_t> top_logprobs;  // absent: no log-probabilities
  bool ignore_eos = false;
};

struct ApiRequest {
  std::string served_name;
  std::vector<Prompt> prompts;  // at least one; choice index = prompt index * n + continuation
  Sampling sampling;
  int32_t max_tokens = 0;  // 0: as many as the context allows
  std::vector<std::string> stop;
  int32_t n = 1;
  bool echo = false;
  bool stream = false;
  bool include_usage = false;
  std::string template_variables_json;  // object; empty: none
  std::string cache_salt;               // prompts with different ones share no cached prefix
};

// --- answers ----------------------------------------------------------------------------------

struct AnswerLogprob {
  std::string token_bytes;
  float logprob = 0;
  std::vector<AnswerLogprob> top;
};

enum class FinishReason { kStop, kLength, kToolCalls };

// What one choice gained. Text is whole UTF-8 characters.
struct ChoiceDelta {
  int32_t choice_index = 0;
  std::string text;
  std::string reasoning;
  std::vector<AnswerLogprob> logprobs;
  std::optional<FinishReason> finish;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
};

// The parts of an answer that stay the same from its first byte to its last.
struct AnswerHead {
  std::string id;
  int64_t created_unix_seconds = 0;
  std::string served_name;
  bool include_usage = false;
  bool has_logprobs = false;
};

// A refusal or failure as a client sees it.
struct ApiError {
  int status = 500;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // empty: null
  std::string code;   // empty: null
  int32_t retry_after_seconds = 0;
};

}  // namespace rempart::router
