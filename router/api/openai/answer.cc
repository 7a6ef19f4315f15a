// SPDX-License-Identifier: Apache-2.0
#include "router/api/openai/answer.h"

#include "absl/strings/str_cat.h"
#include "router/api/json_text.h"

namespace rempart::router::openai {
namespace {

absl::string_view ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "\"stop\"";
    case FinishReason::kLength:
      return "\"length\"";
    case FinishReason::kToolCalls:
      return "\"tool_calls\"";
  }
  return "null";
}

std::string ReasonOf(const ChoiceDelta& delta) {
  return delta.finish ? std::string(ReasonName(*delta.finish)) : "null";
}

std::string NullOr(const std::string& text) { return text.empty() ? "null" : JsonString(text); }

std::string UsageJson(const Usage& usage) {
  return absl::StrCat("{\"prompt_tokens\":", usage.prompt_tokens,
                      ",\"completion_tokens\":", usage.completion_tokens,
                      ",\"total_tokens\":", usage.prompt_tokens + usage.completion_tokens,
                      ",\"prompt_tokens_details\":{\"cached_tokens\":", usage.cached_tokens, "}}");
}

// Members that every body and event begins with, ending in a comma.
std::string HeadJson(const AnswerHead& head, absl::string_view object) {
  return absl::StrCat("{\"id\":", JsonString(head.id), ",\"object\":\"", object,
                      "\",\"created\":", head.created_unix_seconds,
                      ",\"model\":", JsonString(head.served_name), ",");
}

absl::string_view StreamObject(Route route) {
  return route == Route::kChat ? "chat.completion.chunk" : "text_completion";
}

std::string Event(Route route, const AnswerHead& head, absl::string_view choices,
                  absl::string_view usage) {
  std::string event =
      absl::StrCat("data: ", HeadJson(head, StreamObject(route)), "\"choices\":[", choices, "]");
  if (head.include_usage) absl::StrAppend(&event, ",\"usage\":", usage);
  event += "}\n\n";
  return event;
}

void AppendChatToken(std::string& out, const AnswerLogprob& token) {
  absl::StrAppend(&out, "{\"token\":", JsonString(token.token_bytes),
                  ",\"logprob\":", JsonNumber(token.logprob), ",\"bytes\":[");
  absl::string_view separator;
  for (const char byte : token.token_bytes) {
    absl::StrAppend(&out, separator, static_cast<int>(static_cast<uint8_t>(byte)));
    separator = ",";
  }
  out += "]";
}

std::string ChatLogprobs(const AnswerHead& head, const ChoiceDelta& delta) {
  if (!head.has_logprobs || delta.logprobs.empty()) return "null";
  std::string out = "{\"content\":[";
  absl::string_view separator;
  for (const AnswerLogprob& token : delta.logprobs) {
    out.append(separator.data(), separator.size());
    AppendChatToken(out, token);
    out += ",\"top_logprobs\":[";
    absl::string_view inner;
    for (const AnswerLogprob& other : token.top) {
      out.append(inner.data(), inner.size());
      AppendChatToken(out, other);
      out += "}";
      inner = ",";
    }
    out += "]}";
    separator = ",";
  }
  return out + "],\"refusal\":null}";
}

std::string CompletionLogprobs(const AnswerHead& head, const ChoiceDelta& delta) {
  if (!head.has_logprobs || delta.logprobs.empty()) return "null";
  std::string tokens, values, tops, offsets;
  size_t offset = 0;
  absl::string_view separator;
  for (const AnswerLogprob& token : delta.logprobs) {
    absl::StrAppend(&tokens, separator, JsonString(token.token_bytes));
    absl::StrAppend(&values, separator, JsonNumber(token.logprob));
    absl::StrAppend(&offsets, separator, offset);
    absl::StrAppend(&tops, separator, "{");
    absl::string_view inner;
    for (const AnswerLogprob& other : token.top) {
      absl::StrAppend(&tops, inner, JsonString(other.token_bytes), ":", JsonNumber(other.logprob));
      inner = ",";
    }
    tops += "}";
    offset += token.token_bytes.size();
    separator = ",";
  }
  return absl::StrCat("{\"tokens\":[", tokens, "],\"token_logprobs\":[", values,
                      "],\"top_logprobs\":[", tops, "],\"text_offset\":[", offsets, "]}");
}

std::string ChatChunk(const ChoiceDelta& delta, absl::string_view members,
                      absl::string_view logprobs, absl::string_view reason) {
  return absl::StrCat("{\"index\":", delta.choice_index, ",\"delta\":{", members,
                      "},\"logprobs\":", logprobs, ",\"finish_reason\":", reason, "}");
}

// Both names of reasoning that clients read.
std::string ReasoningMembers(const std::string& reasoning) {
  const std::string text = JsonString(reasoning);
  return absl::StrCat("\"reasoning_content\":", text, ",\"reasoning\":", text);
}

std::string ChatDelta(const AnswerHead& head, const ChoiceDelta& delta) {
  std::string out, members;
  if (!delta.reasoning.empty()) members = ReasoningMembers(delta.reasoning);
  // Tokens without text yet (half a character) still carry their log-probabilities.
  const bool has_tokens = head.has_logprobs && !delta.logprobs.empty();
  if (!delta.text.empty() || has_tokens) {
    absl::StrAppend(&members, members.empty() ? "" : ",", "\"content\":", JsonString(delta.text));
  }
  if (!members.empty()) {
    out += Event(Route::kChat, head, ChatChunk(delta, members, ChatLogprobs(head, delta), "null"),
                 "null");
  }
  if (delta.finish) {
    out += Event(Route::kChat, head, ChatChunk(delta, "", "null", ReasonOf(delta)), "null");
  }
  return out;
}

std::string CompletionChoice(const AnswerHead& head, const ChoiceDelta& choice) {
  return absl::StrCat("{\"text\":", JsonString(choice.text), ",\"index\":", choice.choice_index,
                      ",\"logprobs\":", CompletionLogprobs(head, choice),
                      ",\"finish_reason\":", ReasonOf(choice), "}");
}

std::string ChatChoice(const AnswerHead& head, const WholeChoice& choice) {
  std::string message = absl::StrCat(
      "{\"role\":\"assistant\",\"content\":", JsonString(choice.text), ",\"refusal\":null");
  if (!choice.reasoning.empty()) absl::StrAppend(&message, ",", ReasoningMembers(choice.reasoning));
  return absl::StrCat("{\"index\":", choice.choice_index, ",\"message\":", message,
                      "},\"logprobs\":", ChatLogprobs(head, choice),
                      ",\"finish_reason\":", ReasonOf(choice), "}");
}

}  // namespace

std::string ErrorBody(const ApiError& error) {
  return absl::StrCat("{\"error\":{\"message\":", JsonString(error.message),
                      ",\"type\":", JsonString(error.type), ",\"param\":", NullOr(error.param),
                      ",\"code\":", NullOr(error.code), "}}");
}

std::string ErrorEvent(const ApiError& error) {
  return absl::StrCat("data: ", ErrorBody(error), "\n\n");
}

std::string StreamStart(Route route, const AnswerHead& head, int32_t choice_count) {
  std::string out;
  if (route != Route::kChat) return out;
  for (int32_t index = 0; index < choice_count; ++index) {
    ChoiceDelta first;
    first.choice_index = index;
    out +=
        Event(route, head,
              ChatChunk(first, "\"role\":\"assistant\",\"content\":\"\"", "null", "null"), "null");
  }
  return out;
}

std::string StreamDelta(Route route, const AnswerHead& head, const ChoiceDelta& delta) {
  if (route == Route::kChat) return ChatDelta(head, delta);
  if (delta.text.empty() && delta.logprobs.empty() && !delta.finish) return "";
  return Event(route, head, CompletionChoice(head, delta), "null");
}

std::string StreamEnd(Route route, const AnswerHead& head, const Usage& usage) {
  std::string out;
  if (head.include_usage) out = Event(route, head, "", UsageJson(usage));
  return out + "data: [DONE]\n\n";
}

std::string WholeAnswer(Route route, const AnswerHead& head, absl::Span<const WholeChoice> choices,
                        const Usage& usage) {
  const bool chat = route == Route::kChat;
  std::string out = HeadJson(head, chat ? "chat.completion" : "text_completion");
  out += "\"choices\":[";
  absl::string_view separator;
  for (const WholeChoice& choice : choices) {
    absl::StrAppend(&out, separator,
                    chat ? ChatChoice(head, choice) : CompletionChoice(head, choice));
    separator = ",";
  }
  absl::StrAppend(&out, "],\"usage\":", UsageJson(usage), "}");
  return out;
}

std::string ModelBody(const ModelCard& card) {
  std::string out = absl::StrCat("{\"id\":", JsonString(card.served_name),
                                 ",\"object\":\"model\",\"created\":", card.created_unix_seconds,
                                 ",\"owned_by\":\"rempart\"");
  if (card.context_length > 0) {
    absl::StrAppend(&out, ",\"max_model_len\":", card.context_length);
  }
  return out + "}";
}

std::string ModelListBody(absl::Span<const ModelCard> cards) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  absl::string_view separator;
  for (const ModelCard& card : cards) {
    absl::StrAppend(&out, separator, ModelBody(card));
    separator = ",";
  }
  return out + "]}";
}

}  // namespace rempart::router::openai
