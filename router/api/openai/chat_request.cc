// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/api/openai/fields.h"
#include "router/api/openai/requests.h"

namespace rempart::router::openai {
namespace {

namespace dom = simdjson::dom;

ApiError Missing(absl::string_view param) {
  ApiError error = Invalid(param, absl::StrCat("Missing required parameter: '", param, "'."));
  error.code = "missing_required_parameter";
  return error;
}

// The text of one content part.
Verdict ReadPart(const std::string& param, dom::element value, std::string& text) {
  dom::object part;
  std::string_view type;
  if (value.get(part) != simdjson::SUCCESS || part["type"].get(type) != simdjson::SUCCESS) {
    return Invalid(param, absl::StrCat("Invalid '", param, "': expected an object with a type."));
  }
  if (type != "text") {
    ApiError error = Invalid(absl::StrCat(param, ".type"),
                             absl::StrCat("Content of type '", View(type),
                                          "' is not supported: models here read text only."));
    error.code = "unsupported_value";
    return error;
  }
  dom::element content;
  if (part["text"].get(content) != simdjson::SUCCESS) return Missing(absl::StrCat(param, ".text"));
  std::string more;
  if (Verdict bad = ReadText(absl::StrCat(param, ".text"), content, more)) return bad;
  text += more;
  return std::nullopt;
}

Verdict ReadContent(const std::string& param, dom::element value, Message& message) {
  dom::array parts;
  if (value.get(parts) != simdjson::SUCCESS) {
    if (value.is_object() || !value.is_string()) {
      return Invalid(param, absl::StrCat("Invalid type for '", param,
                                         "': expected a string or an array of parts."));
    }
    return ReadText(param, value, message.content);
  }
  size_t index = 0;
  for (const dom::element part : parts) {
    if (Verdict bad = ReadPart(absl::StrCat(param, "[", index++, "]"), part, message.content)) {
      return bad;
    }
  }
  return std::nullopt;
}

// History of tool calls: the chat template needs function.name and function.arguments, a string.
Verdict ReadToolCalls(const std::string& param, dom::element value, Message& message) {
  dom::array calls;
  if (value.get(calls) != simdjson::SUCCESS) {
    return Invalid(param, absl::StrCat("Invalid type for '", param, "': expected an array."));
  }
  size_t index = 0;
  for (const dom::element call : calls) {
    const std::string item = absl::StrCat(param, "[", index++, "].function");
    std::string_view text;
    if (call["function"]["name"].get(text) != simdjson::SUCCESS) {
      return Missing(absl::StrCat(item, ".name"));
    }
    if (call["function"]["arguments"].get(text) != simdjson::SUCCESS) {
      return Missing(absl::StrCat(item, ".arguments"));
    }
  }
  if (calls.size() > 0) message.tool_calls_json = simdjson::minify(calls);
  return std::nullopt;
}

Verdict ReadMessageMember(const std::string& at, absl::string_view key, dom::element value,
                          Message& message) {
  const std::string param = absl::StrCat(at, ".", key);
  if (key == "role") return ReadText(param, value, message.role);
  if (value.is_null()) return std::nullopt;
  if (key == "content") {
    message.content_is_null = false;
    return ReadContent(param, value, message);
  }
  if (key == "name") return ReadText(param, value, message.name);
  if (key == "tool_call_id") return ReadText(param, value, message.tool_call_id);
  if (key == "tool_calls") return ReadToolCalls(param, value, message);
  // Clients send back what they received; templates here do not read it.
  for (const char* inert : {"refusal", "annotations", "reasoning", "reasoning_content"}) {
    if (key == inert) return std::nullopt;
  }
  ApiError error = Invalid(param, absl::StrCat("Unknown parameter: '", param, "'."));
  error.code = "unknown_parameter";
  return error;
}

Verdict ReadMessage(const std::string& at, dom::element value, Message& message) {
  dom::object object;
  if (value.get(object) != simdjson::SUCCESS) {
    return Invalid(at, absl::StrCat("Invalid type for '", at, "': expected an object."));
  }
  message.content_is_null = true;
  for (const dom::key_value_pair member : object) {
    if (Verdict bad = ReadMessageMember(at, View(member.key), member.value, message)) return bad;
  }
  const std::string& role = message.role;
  if (role.empty()) return Missing(absl::StrCat(at, ".role"));
  if (role == "developer") message.role = "system";
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    return Invalid(absl::StrCat(at, ".role"),
                   absl::StrCat("Invalid value: '", role,
                                "'. Supported roles are: 'system', 'developer', 'user', "
                                "'assistant' and 'tool'."));
  }
  if (message.content_is_null && role != "assistant") return Missing(absl::StrCat(at, ".content"));
  if (role == "tool" && message.tool_call_id.empty()) {
    return Missing(absl::StrCat(at, ".tool_call_id"));
  }
  return std::nullopt;
}

Verdict ReadMessages(absl::string_view name, dom::element value, Draft& draft) {
  dom::array list;
  if (value.get(list) != simdjson::SUCCESS) {
    return Invalid(name, "Invalid type for 'messages': expected an array.");
  }
  if (list.size() == 0) return Invalid(name, "Invalid 'messages': at least one is needed.");
  Prompt& prompt = draft.request.prompts.emplace_back();
  size_t index = 0;
  for (const dom::element entry : list) {
    Message& message = prompt.messages.emplace_back();
    if (Verdict bad = ReadMessage(absl::StrCat(name, "[", index++, "]"), entry, message)) {
      return bad;
    }
  }
  return std::nullopt;
}

Verdict ReadMaxCompletionTokens(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  const int64_t most = std::numeric_limits<int32_t>::max();
  if (Verdict bad = ReadInt(name, value, 1, most, number)) return bad;
  draft.max_completion_tokens = static_cast<int32_t>(number);
  return std::nullopt;
}

Verdict ReadLogprobs(absl::string_view name, dom::element value, Draft& draft) {
  return ReadBool(name, value, draft.wants_logprobs);
}

Verdict ReadTopLogprobs(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  if (Verdict bad = ReadInt(name, value, 0, 20, number)) return bad;
  draft.top_logprobs = static_cast<int32_t>(number);
  return std::nullopt;
}

Verdict ReadTemplateVariables(absl::string_view name, dom::element value, Draft& draft) {
  dom::object variables;
  if (value.get(variables) != simdjson::SUCCESS) {
    return Invalid(name, "Invalid type for 'chat_template_kwargs': expected an object.");
  }
  draft.request.template_variables_json = simdjson::minify(variables);
  return std::nullopt;
}

Verdict WantsNoTools(absl::string_view name, dom::element value, Draft&) {
  dom::array list;
  if (value.get(list) == simdjson::SUCCESS && list.size() == 0) return std::nullopt;
  return Unsupported(name, "");
}

Verdict WantsNoToolChoice(absl::string_view name, dom::element value, Draft&) {
  std::string_view choice;
  if (value.get(choice) == simdjson::SUCCESS && (choice == "none" || choice == "auto")) {
    return std::nullopt;
  }
  return Unsupported(name, "");
}

Verdict WantsTextFormat(absl::string_view name, dom::element value, Draft&) {
  std::string_view type;
  if (value["type"].get(type) == simdjson::SUCCESS && type == "text") return std::nullopt;
  return Unsupported(name, "");
}

Verdict WantsTextModality(absl::string_view name, dom::element value, Draft&) {
  dom::array list;
  if (value.get(list) != simdjson::SUCCESS) return Unsupported(name, "");
  for (const dom::element entry : list) {
    std::string_view modality;
    if (entry.get(modality) != simdjson::SUCCESS || modality != "text") {
      return Unsupported(name, "");
    }
  }
  return std::nullopt;
}

constexpr absl::string_view kNoTools = "tool calling is not part of this version";

constexpr Field kChat[] = {
    {"messages", FieldRule::kApplied, ReadMessages, ""},
    {"max_completion_tokens", FieldRule::kApplied, ReadMaxCompletionTokens, ""},
    {"logprobs", FieldRule::kApplied, ReadLogprobs, ""},
    {"top_logprobs", FieldRule::kApplied, ReadTopLogprobs, ""},
    {"chat_template_kwargs", FieldRule::kApplied, ReadTemplateVariables, ""},
    {"parallel_tool_calls", FieldRule::kInert, nullptr, "no tools are called"},
    {"tools", FieldRule::kRefused, WantsNoTools, kNoTools},
    {"tool_choice", FieldRule::kRefused, WantsNoToolChoice, kNoTools},
    {"functions", FieldRule::kRefused, WantsNoTools, kNoTools},
    {"function_call", FieldRule::kRefused, WantsNoToolChoice, kNoTools},
    {"response_format", FieldRule::kRefused, WantsTextFormat,
     "constrained output is not part of this version; only {\"type\": \"text\"} is accepted"},
    {"modalities", FieldRule::kRefused, WantsTextModality, "models here write text only"},
    {"audio", FieldRule::kRefused, nullptr, "models here write text only"},
    {"prediction", FieldRule::kRefused, nullptr, "predicted outputs are not used"},
    {"web_search_options", FieldRule::kRefused, nullptr, "there is no web search"},
    {"reasoning_effort", FieldRule::kRefused, nullptr,
     "set what the model's template knows with 'chat_template_kwargs'"},
    {"verbosity", FieldRule::kRefused, nullptr, "say it in the prompt"},
};

}  // namespace

absl::Span<const Field> ChatFields() { return kChat; }

std::variant<ApiRequest, ApiError> ReadChatRequest(absl::string_view body) {
  dom::parser parser;
  dom::object object;
  Draft draft;
  if (Verdict bad = ParseBody(body, parser, object)) return *std::move(bad);
  if (Verdict bad = ReadFields(object, ChatFields(), draft)) return *std::move(bad);
  if (draft.request.prompts.empty()) return Missing("messages");
  // Of two fields named alike, JSON leaves open which counts; a request must not depend on it.
  if (draft.request.prompts.size() > 1) return Invalid("messages", "'messages' is given twice.");
  if (Verdict bad = FinishDraft(draft)) return *std::move(bad);
  return std::move(draft.request);
}

}  // namespace rempart::router::openai
