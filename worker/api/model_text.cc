// SPDX-License-Identifier: Apache-2.0
#include "worker/api/model_text.h"

#include <simdjson.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

std::string JsonString(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppend(&quoted, absl::StrFormat("\\u%04x", c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

// The fields of a JSON object, without its braces. InvalidArgument when it is none.
absl::StatusOr<std::string> Fields(absl::string_view json) {
  if (json.empty()) return std::string();
  simdjson::dom::parser parser;
  simdjson::dom::object object;
  if (parser.parse(json.data(), json.size()).get_object().get(object) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError("chat_template_kwargs must be a JSON object");
  }
  std::vector<std::string> fields;
  for (const auto& [key, value] : object) {
    fields.push_back(absl::StrCat(JsonString({key.data(), key.size()}), ":",
                                  std::string(simdjson::minify(value))));
  }
  return absl::StrJoin(fields, ",");
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelText>> ModelText::FromSource(const ModelSource& source) {
  if (source.is_folder) return FromFolder(source.path, source.config.vocabulary);
  return FromGguf(source.metadata);
}

absl::Status ModelText::ReadTemplate(absl::string_view where, absl::string_view source) {
  if (source.empty()) return absl::OkStatus();  // it would render every conversation to nothing
  absl::StatusOr<std::unique_ptr<ChatTemplate>> read = ChatTemplate::Create(source);
  if (!read.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", read.status().message()));
  }
  template_ = *std::move(read);
  return absl::OkStatus();
}

void ModelText::AddKnownEndings() {
  for (int32_t id = 0; id < vocabulary_; ++id) {
    if (tokenizer_->IsControl(id) && EndsByName(tokenizer_->TokenSpelling(id))) ends_.insert(id);
  }
}

std::string ModelText::TokenBytes(int32_t token_id) const {
  return std::string(tokenizer_->TokenBytes(token_id));
}

bool ModelText::EndsGeneration(int32_t token_id) const { return ends_.contains(token_id); }

int32_t ModelText::vocabulary_size() const { return vocabulary_; }

absl::StatusOr<std::vector<int32_t>> ModelText::Encode(absl::string_view text,
                                                       SpecialTokens special) const {
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer_->Encode(text, special));
  for (const int32_t id : ids) {
    if (id < vocabulary_) continue;
    return absl::InvalidArgumentError(absl::StrCat("the text has the token ",
                                                   tokenizer_->TokenSpelling(id),
                                                   ", which this model has no embedding for"));
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ModelText::EncodeChat(absl::string_view messages_json,
                                                           absl::string_view variables_json,
                                                           bool add_generation_prompt) const {
  if (template_ == nullptr) {
    return absl::InvalidArgumentError(
        "this model has no chat template: use /v1/completions, or serve an instruction-tuned "
        "version of it");
  }
  ASSIGN_OR_RETURN(std::string variables, Fields(variables_json));
  if (!variables.empty()) variables += ",";
  // Ours come last: of two equal keys the last one counts.
  const std::string all =
      absl::StrCat("{", variables, "\"messages\":", messages_json,
                   ",\"add_generation_prompt\":", add_generation_prompt ? "true" : "false",
                   ",\"bos_token\":", JsonString(tokenizer_->TokenSpelling(begin_id_)),
                   ",\"eos_token\":", JsonString(tokenizer_->TokenSpelling(end_id_)), "}");
  ASSIGN_OR_RETURN(const std::string text,
                   template_->Render(all, absl::ToUnixSeconds(absl::Now())));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, Encode(text, SpecialTokens::kParsed));
  // Many templates write BOS themselves.
  if (add_begin_ && (ids.empty() || ids.front() != begin_id_)) ids.insert(ids.begin(), begin_id_);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ModelText::EncodeText(absl::string_view text) const {
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, Encode(text, SpecialTokens::kParsed));
  if (add_begin_) ids.insert(ids.begin(), begin_id_);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ModelText::EncodePlainText(absl::string_view text) const {
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, Encode(text, SpecialTokens::kPlain));
  if (add_begin_) ids.insert(ids.begin(), begin_id_);
  return ids;
}

std::optional<int32_t> ModelText::begin_id() const {
  if (!add_begin_) return std::nullopt;
  return begin_id_;
}

}  // namespace rempart::worker
