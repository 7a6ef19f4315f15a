// SPDX-License-Identifier: Apache-2.0
#include "worker/api/request_reader.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/engine/stop_conditions.h"

namespace rempart::worker {
namespace {

constexpr int32_t kMaxContinuations = 128;
constexpr int32_t kMaxTopLogprobs = 20;
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxBiases = 1024;
constexpr size_t kMaxSaltBytes = 1024;

using Refusal = std::optional<Failure>;

Failure Invalid(absl::string_view field, absl::string_view message) {
  return {FailureCode::kInvalidArgument, absl::StrCat(field, " ", message), std::string(field)};
}

Refusal CheckFloat(absl::string_view field, float value, float low, float high) {
  if (std::isfinite(value) && value >= low && value <= high) return std::nullopt;
  return Invalid(field, absl::StrFormat("is %g: it must be from %g to %g", value, low, high));
}

Refusal CheckInt(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return std::nullopt;
  return Invalid(field, absl::StrCat("is ", value, ": it must be from ", low, " to ", high));
}

void AppendJsonString(absl::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppendFormat(&out, "\\u%04x", c);
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

Refusal ReadBias(const v1::Sampling& from, int32_t vocabulary_size, SamplingParams& to) {
  if (from.logit_bias_size() > kMaxBiases) {
    return Invalid("sampling.logit_bias", absl::StrCat("has more than ", kMaxBiases, " entries"));
  }
  for (const v1::LogitBias& bias : from.logit_bias()) {
    if (auto bad = CheckInt("sampling.logit_bias", bias.token_id(), 0, vocabulary_size - 1)) {
      return bad;
    }
    if (auto bad = CheckFloat("sampling.logit_bias", bias.bias(), -100, 100)) return bad;
    to.logit_bias.emplace_back(bias.token_id(), bias.bias());
  }
  return std::nullopt;
}

Refusal ReadSampling(const v1::Sampling& from, int32_t vocabulary_size, SamplingParams& to) {
  const auto number = [](bool has, float value, float& target, absl::string_view field, float low,
                         float high) -> Refusal {
    if (!has) return std::nullopt;
    target = value;
    return CheckFloat(field, value, low, high);
  };
  for (const Refusal& bad :
       {number(from.has_temperature(), from.temperature(), to.temperature, "sampling.temperature",
               0, 2),
        number(from.has_top_p(), from.top_p(), to.top_p, "sampling.top_p", 1e-6f, 1),
        number(from.has_min_p(), from.min_p(), to.min_p, "sampling.min_p", 0, 1),
        number(from.has_frequency_penalty(), from.frequency_penalty(), to.frequency_penalty,
               "sampling.frequency_penalty", -2, 2),
        number(from.has_presence_penalty(), from.presence_penalty(), to.presence_penalty,
               "sampling.presence_penalty", -2, 2),
        number(from.has_repetition_penalty(), from.repetition_penalty(), to.repetition_penalty,
               "sampling.repetition_penalty", 0.01f, 100)}) {
    if (bad) return bad;
  }
  if (from.has_top_k()) {
    if (auto bad = CheckInt("sampling.top_k", from.top_k(), -1, INT32_MAX)) return bad;
    to.top_k = std::max(from.top_k(), 0);
  }
  if (from.has_top_logprobs()) {
    if (auto bad = CheckInt("sampling.top_logprobs", from.top_logprobs(), 0, kMaxTopLogprobs)) {
      return bad;
    }
    to.top_logprobs = from.top_logprobs();
  }
  to.ignore_eos = from.ignore_eos();
  return ReadBias(from, vocabulary_size, to);
}

Refusal CheckIds(absl::string_view field, const google::protobuf::RepeatedField<int32_t>& ids,
                 int32_t vocabulary_size) {
  for (int32_t id : ids) {
    if (auto bad = CheckInt(field, id, 0, vocabulary_size - 1)) return bad;
  }
  return std::nullopt;
}

Refusal ReadPrompt(const v1::Start& start, const PromptEncoder& encoder,
                   const Vocabulary& vocabulary, SequenceRequest& request) {
  absl::StatusOr<std::vector<int32_t>> ids;
  absl::string_view field;
  switch (start.prompt_case()) {
    case v1::Start::kChat:
      field = "chat";
      if (!start.chat().tools_json().empty()) {
        return Invalid("chat.tools", "is set, but this worker does not serve tools");
      }
      if (start.chat().messages().empty()) return Invalid("chat.messages", "is empty");
      ids = encoder.EncodeChat(MessagesJson(start.chat()), start.chat().template_variables_json(),
                               start.chat().add_generation_prompt());
      break;
    case v1::Start::kText:
      field = "prompt";
      ids = encoder.EncodeText(start.text());
      if (start.echo()) request.echo_text = start.text();
      break;
    case v1::Start::kTokenIds:
      field = "prompt";
      if (auto bad = CheckIds(field, start.token_ids().ids(), encoder.vocabulary_size()))
        return bad;
      ids.emplace(start.token_ids().ids().begin(), start.token_ids().ids().end());
      if (start.echo()) {
        std::string bytes;
        for (int32_t id : *ids) bytes += vocabulary.TokenBytes(id);
        request.echo_text = TakeWholeCharacters(bytes);
      }
      break;
    case v1::Start::PROMPT_NOT_SET:
      return Invalid("prompt", "is missing");
  }
  if (!ids.ok()) return Invalid(field, absl::StrCat("is refused: ", ids.status().message()));
  request.prompt_ids = *std::move(ids);
  return std::nullopt;
}

Refusal ReadStops(const v1::Start& start, SequenceRequest& request) {
  if (start.stop_size() > kMaxStops) {
    return Invalid("stop", absl::StrCat("has more than ", kMaxStops, " strings"));
  }
  for (const std::string& stop : start.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return Invalid("stop", absl::StrCat("holds a string of ", stop.size(), " bytes: 1 to ",
                                          kMaxStopBytes, " are allowed"));
    }
    request.stop.push_back(stop);
  }
  return std::nullopt;
}

Refusal Read(const v1::Start& start, const PromptEncoder& encoder, const Vocabulary& vocabulary,
             SequenceRequest& request) {
  const int32_t vocabulary_size = encoder.vocabulary_size();
  if (auto bad = ReadSampling(start.sampling(), vocabulary_size, request.sampling)) return bad;
  if (auto bad = CheckInt("max_tokens", start.max_tokens(), 0, INT32_MAX)) return bad;
  if (auto bad = CheckInt("n", start.n(), 0, kMaxContinuations)) return bad;
  if (auto bad = CheckInt("deadline_ms", start.deadline_ms(), 0, INT32_MAX)) return bad;
  if (auto bad = CheckIds("resume_tokens", start.resume_tokens(), vocabulary_size)) return bad;
  if (start.resume_tokens_size() > 0 && start.n() > 1) {
    return Invalid("resume_tokens", "can continue one continuation, not n");
  }
  if (start.cache_salt().size() > kMaxSaltBytes) {
    return Invalid("cache_salt", absl::StrCat("is longer than ", kMaxSaltBytes, " bytes"));
  }
  if (auto bad = ReadStops(start, request)) return bad;
  return ReadPrompt(start, encoder, vocabulary, request);
}

}  // namespace

std::string MessagesJson(const v1::ChatPrompt& chat) {
  std::string json = "[";
  for (const v1::ChatMessage& message : chat.messages()) {
    json += json.size() > 1 ? ",{\"role\":" : "{\"role\":";
    AppendJsonString(message.role(), json);
    json += ",\"content\":";
    if (message.content_is_null()) {
      json += "null";
    } else {
      AppendJsonString(message.content(), json);
    }
    if (!message.name().empty()) {
      json += ",\"name\":";
      AppendJsonString(message.name(), json);
    }
    if (!message.tool_calls_json().empty()) {
      absl::StrAppend(&json, ",\"tool_calls\":", message.tool_calls_json());
    }
    if (!message.tool_call_id().empty()) {
      json += ",\"tool_call_id\":";
      AppendJsonString(message.tool_call_id(), json);
    }
    json += '}';
  }
  return json + "]";
}

absl::variant<SequenceRequest, Failure> ReadStart(const v1::Start& start,
                                                  const PromptEncoder& encoder,
                                                  const Vocabulary& vocabulary, absl::Time now,
                                                  uint64_t drawn_seed) {
  SequenceRequest request;
  request.sampling = encoder.default_sampling();
  if (auto bad = Read(start, encoder, vocabulary, request)) return *std::move(bad);
  request.seed_was_drawn = !start.sampling().has_seed();
  request.sampling.seed =
      request.seed_was_drawn ? drawn_seed : static_cast<uint64_t>(start.sampling().seed());
  request.max_tokens = start.max_tokens();
  request.n = std::max(start.n(), 1);
  request.priority = start.priority();
  request.client = start.tenant();
  request.cache_salt = start.cache_salt();
  if (start.deadline_ms() > 0) request.deadline = now + absl::Milliseconds(start.deadline_ms());
  request.resume_tokens.assign(start.resume_tokens().begin(), start.resume_tokens().end());
  return request;
}

}  // namespace rempart::worker
