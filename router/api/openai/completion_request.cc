// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/api/openai/fields.h"
#include "router/api/openai/requests.h"

namespace rempart::router::openai {
namespace {

namespace dom = simdjson::dom;

constexpr int32_t kDefaultMaxTokens = 16;

Verdict ReadIds(const std::string& param, dom::array list, Draft& draft) {
  Prompt& prompt = draft.request.prompts.emplace_back();
  prompt.kind = Prompt::Kind::kTokenIds;
  prompt.token_ids.reserve(list.size());
  size_t index = 0;
  for (const dom::element entry : list) {
    int64_t id = 0;
    if (Verdict bad = ReadInt(absl::StrCat(param, "[", index++, "]"), entry, 0,
                              std::numeric_limits<int32_t>::max(), id)) {
      return bad;
    }
    prompt.token_ids.push_back(static_cast<int32_t>(id));
  }
  if (prompt.token_ids.empty()) {
    return Invalid(param, absl::StrCat("Invalid '", param, "': it must not be empty."));
  }
  return std::nullopt;
}

Verdict ReadOnePrompt(const std::string& param, dom::element value, Draft& draft) {
  dom::array ids;
  if (value.get(ids) == simdjson::SUCCESS) return ReadIds(param, ids, draft);
  if (!value.is_string()) {
    return Invalid(param, absl::StrCat("Invalid type for '", param,
                                       "': expected a string, an array of strings, or token ids."));
  }
  Prompt& prompt = draft.request.prompts.emplace_back();
  prompt.kind = Prompt::Kind::kText;
  return ReadText(param, value, prompt.text);
}

Verdict ReadPrompt(absl::string_view name, dom::element value, Draft& draft) {
  const std::string param(name);
  dom::array list;
  if (value.get(list) != simdjson::SUCCESS) return ReadOnePrompt(param, value, draft);
  if (list.size() == 0) return Invalid(name, "Invalid 'prompt': it must not be empty.");
  // An array of numbers is one prompt of token ids.
  if ((*list.begin()).is_number()) return ReadIds(param, list, draft);
  if (list.size() > kMaxPrompts) {
    return Invalid(name, absl::StrCat("Invalid 'prompt': at most ", kMaxPrompts, " prompts."));
  }
  size_t index = 0;
  for (const dom::element entry : list) {
    if (Verdict bad = ReadOnePrompt(absl::StrCat(param, "[", index++, "]"), entry, draft)) {
      return bad;
    }
  }
  return std::nullopt;
}

Verdict ReadEcho(absl::string_view name, dom::element value, Draft& draft) {
  return ReadBool(name, value, draft.request.echo);
}

Verdict ReadLogprobs(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  if (Verdict bad = ReadInt(name, value, 0, 5, number)) return bad;
  draft.wants_logprobs = true;
  draft.top_logprobs = static_cast<int32_t>(number);
  return std::nullopt;
}

Verdict WantsOneBest(absl::string_view name, dom::element value, Draft&) {
  int64_t number = 0;
  if (value.get(number) == simdjson::SUCCESS && number == 1) return std::nullopt;
  return Unsupported(name, "");
}

Verdict WantsNoSuffix(absl::string_view name, dom::element value, Draft&) {
  std::string_view suffix;
  if (value.get(suffix) == simdjson::SUCCESS && suffix.empty()) return std::nullopt;
  return Unsupported(name, "");
}

constexpr Field kCompletion[] = {
    {"prompt", FieldRule::kApplied, ReadPrompt, ""},
    {"echo", FieldRule::kApplied, ReadEcho, ""},
    {"logprobs", FieldRule::kApplied, ReadLogprobs, ""},
    {"best_of", FieldRule::kRefused, WantsOneBest, "use 'n' and choose among the answers"},
    {"suffix", FieldRule::kRefused, WantsNoSuffix, "models here have no infilling template"},
};

}  // namespace

absl::Span<const Field> CompletionFields() { return kCompletion; }

std::variant<ApiRequest, ApiError> ReadCompletionRequest(absl::string_view body) {
  dom::parser parser;
  dom::object object;
  Draft draft;
  if (Verdict bad = ParseBody(body, parser, object)) return *std::move(bad);
  if (Verdict bad = ReadFields(object, CompletionFields(), draft)) return *std::move(bad);
  if (draft.request.prompts.empty()) {
    ApiError error = Invalid("prompt", "Missing required parameter: 'prompt'.");
    error.code = "missing_required_parameter";
    return error;
  }
  if (!draft.max_tokens) draft.max_tokens = kDefaultMaxTokens;
  if (Verdict bad = FinishDraft(draft)) return *std::move(bad);
  // The text of a prompt comes without the log-probabilities that clients expect of echo.
  if (draft.request.echo && draft.wants_logprobs) {
    return Unsupported("echo", "'echo' together with 'logprobs' is not supported.");
  }
  return std::move(draft.request);
}

}  // namespace rempart::router::openai
