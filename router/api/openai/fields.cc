// SPDX-License-Identifier: Apache-2.0
#include "router/api/openai/fields.h"

#include "absl/strings/str_cat.h"

namespace rempart::router::openai {
namespace {

namespace dom = simdjson::dom;

absl::string_view KindName(dom::element value) {
  switch (value.type()) {
    case dom::element_type::ARRAY:
      return "an array";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::INT64:
    case dom::element_type::UINT64:
      return "an integer";
    case dom::element_type::DOUBLE:
      return "a decimal number";
    case dom::element_type::STRING:
      return "a string";
    case dom::element_type::BOOL:
      return "a boolean";
    case dom::element_type::NULL_VALUE:
      return "null";
  }
  return "something else";
}

ApiError WrongKind(absl::string_view param, absl::string_view expected, dom::element value) {
  ApiError error = Invalid(param, absl::StrCat("Invalid type for '", param, "': expected ",
                                               expected, ", but got ", KindName(value), "."));
  error.code = "invalid_type";
  return error;
}

const Field* FindField(absl::Span<const Field> fields, absl::string_view name) {
  for (const Field& field : fields) {
    if (field.name == name) return &field;
  }
  return nullptr;
}

Verdict ReadMember(const Field& field, dom::element value, Draft& draft) {
  if (value.is_null()) return std::nullopt;
  switch (field.rule) {
    case FieldRule::kApplied:
      return field.read(field.name, value, draft);
    case FieldRule::kInert:
      return std::nullopt;
    case FieldRule::kRefused:
      if (field.read != nullptr && !field.read(field.name, value, draft)) return std::nullopt;
      return Unsupported(field.name,
                         absl::StrCat("'", field.name, "' is not supported: ", field.reason));
  }
  return std::nullopt;
}

}  // namespace

ApiError Invalid(absl::string_view param, absl::string_view message) {
  ApiError error;
  error.status = 400;
  error.message = std::string(message);
  error.param = std::string(param);
  error.code = "invalid_value";
  return error;
}

ApiError Unsupported(absl::string_view param, absl::string_view message) {
  ApiError error = Invalid(param, message);
  error.code = "unsupported_parameter";
  return error;
}

Verdict ParseBody(absl::string_view body, dom::parser& parser, dom::object& object) {
  dom::element root;
  const simdjson::error_code code = parser.parse(body.data(), body.size()).get(root);
  ApiError error = Invalid("", "");
  error.code = "invalid_json";
  if (code == simdjson::UTF8_ERROR) {
    error.message = "The body of the request is not valid UTF-8.";
    return error;
  }
  if (code != simdjson::SUCCESS) {
    error.message =
        absl::StrCat("The body of the request is not valid JSON: ", simdjson::error_message(code));
    return error;
  }
  if (root.get(object) != simdjson::SUCCESS) {
    error.message = "The body of the request must be a JSON object.";
    return error;
  }
  return std::nullopt;
}

Verdict ReadFields(dom::object object, absl::Span<const Field> own, Draft& draft) {
  for (const dom::key_value_pair member : object) {
    const absl::string_view name = View(member.key);
    const Field* field = FindField(own, name);
    if (field == nullptr) field = FindField(SharedFields(), name);
    if (field == nullptr) {
      ApiError error = Invalid(name, absl::StrCat("Unknown parameter: '", name, "'."));
      error.code = "unknown_parameter";
      return error;
    }
    if (Verdict bad = ReadMember(*field, member.value, draft)) return bad;
  }
  return std::nullopt;
}

Verdict ReadText(absl::string_view param, dom::element value, std::string& out) {
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS) return WrongKind(param, "a string", value);
  out = std::string(text);
  return std::nullopt;
}

Verdict ReadBool(absl::string_view param, dom::element value, bool& out) {
  if (value.get(out) != simdjson::SUCCESS) return WrongKind(param, "a boolean", value);
  return std::nullopt;
}

Verdict ReadInt(absl::string_view param, dom::element value, int64_t low, int64_t high,
                int64_t& out) {
  if (value.type() == dom::element_type::UINT64) {
    return Invalid(param, absl::StrCat("Invalid '", param, "': it must be at most ", high, "."));
  }
  if (value.get(out) != simdjson::SUCCESS) return WrongKind(param, "an integer", value);
  if (out < low || out > high) {
    return Invalid(param, absl::StrCat("Invalid '", param, "': it must be from ", low, " to ", high,
                                       ", but is ", out, "."));
  }
  return std::nullopt;
}

Verdict ReadNumber(absl::string_view param, dom::element value, double low, double high,
                   std::optional<float>& out) {
  double number = 0;
  if (value.get(number) != simdjson::SUCCESS) return WrongKind(param, "a number", value);
  if (!(number >= low && number <= high)) {
    return Invalid(param, absl::StrCat("Invalid '", param, "': it must be from ", low, " to ", high,
                                       ", but is ", number, "."));
  }
  out = static_cast<float>(number);
  return std::nullopt;
}

Verdict FinishDraft(Draft& draft) {
  ApiRequest& request = draft.request;
  if (request.served_name.empty()) {
    ApiError error = Invalid("model", "You must provide a model parameter.");
    error.code = "missing_required_parameter";
    return error;
  }
  if (draft.has_stream_options && !request.stream) {
    return Invalid("stream_options", "'stream_options' is only allowed when 'stream' is true.");
  }
  if (draft.top_logprobs && !draft.wants_logprobs) {
    return Invalid("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true.");
  }
  if (draft.wants_logprobs) request.sampling.top_logprobs = draft.top_logprobs.value_or(0);
  if (draft.max_completion_tokens) {
    request.max_tokens = *draft.max_completion_tokens;
  } else if (draft.max_tokens) {
    request.max_tokens = *draft.max_tokens;
  }
  if (request.prompts.size() * static_cast<size_t>(request.n) > kMaxChoices) {
    return Invalid(
        "n", absl::StrCat("The number of prompts times 'n' must be at most ", kMaxChoices, "."));
  }
  return std::nullopt;
}

}  // namespace rempart::router::openai
