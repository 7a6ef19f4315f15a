// SPDX-License-Identifier: Apache-2.0
// The fields of a request, each with what becomes of it: applied, inert (accepted, documented, has
// no effect) or refused with a reason. What a table does not name is refused by name: nothing is
// dropped in silence. A null value means that the field is absent.
#pragma once

#include <simdjson.h>

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "router/api/request.h"

namespace rempart::router::openai {

// Reads one value into the request; an error names the parameter.
using Verdict = std::optional<ApiError>;
using ReadField = Verdict (*)(absl::string_view name, simdjson::dom::element value,
                              struct Draft& draft);

enum class FieldRule { kApplied, kInert, kRefused };

struct Field {
  absl::string_view name;
  FieldRule rule;
  // Applied: reads the value. Refused: when not null, returns no error for the values that ask for
  // nothing (tools: []), which are accepted.
  ReadField read;
  // Inert: why it has no effect. Refused: what the client is told.
  absl::string_view reason;
};

// A request in the making: what needs more than one field to be judged.
struct Draft {
  ApiRequest request;
  bool wants_logprobs = false;
  std::optional<int32_t> top_logprobs;
  std::optional<int32_t> max_tokens;
  std::optional<int32_t> max_completion_tokens;
  bool has_stream_options = false;
};

constexpr int32_t kMaxContinuations = 128;
constexpr size_t kMaxPrompts = 1024;
constexpr size_t kMaxStops = 4;
constexpr size_t kMaxChoices = 1024;

// The tables, for the reader and for the documentation.
absl::Span<const Field> ChatFields();
absl::Span<const Field> CompletionFields();
// Fields that both dialect routes share: sampling, stop, n, stream, and the inert ones.
absl::Span<const Field> SharedFields();

ApiError Invalid(absl::string_view param, absl::string_view message);
ApiError Unsupported(absl::string_view param, absl::string_view message);

// Parses `body` into an object that lives as long as `parser`.
Verdict ParseBody(absl::string_view body, simdjson::dom::parser& parser,
                  simdjson::dom::object& object);
// Reads every member of `object` by the tables; `own` is searched before SharedFields().
Verdict ReadFields(simdjson::dom::object object, absl::Span<const Field> own, Draft& draft);
// Judges what needs several fields, and fills the request from the draft.
Verdict FinishDraft(Draft& draft);

// Readers of values; an error says what was expected and names `param`.
Verdict ReadText(absl::string_view param, simdjson::dom::element value, std::string& out);
Verdict ReadBool(absl::string_view param, simdjson::dom::element value, bool& out);
Verdict ReadInt(absl::string_view param, simdjson::dom::element value, int64_t low, int64_t high,
                int64_t& out);
Verdict ReadNumber(absl::string_view param, simdjson::dom::element value, double low, double high,
                   std::optional<float>& out);

inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace rempart::router::openai
