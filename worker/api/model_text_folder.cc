// SPDX-License-Identifier: Apache-2.0
// ModelText from the files of a folder in Hugging Face layout.
#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "worker/api/default_sampling.h"
#include "worker/api/model_text.h"
#include "worker/model/config_json.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using simdjson::dom::element;

constexpr int64_t kMaxTokenizerBytes = 128 << 20;
constexpr int64_t kMaxConfigBytes = 16 << 20;

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// A JSON file of the folder, or an empty object where it is absent.
class JsonFile {
 public:
  static absl::StatusOr<JsonFile> Read(const std::string& path, int64_t max_bytes) {
    JsonFile file;
    std::string text = "{}";
    if (Exists(path)) {
      ASSIGN_OR_RETURN(text, ReadTextFile(path, max_bytes));
    }
    file.parser_ = std::make_unique<simdjson::dom::parser>();
    if (const auto error = file.parser_->parse(WithWideIntegersAsDoubles(text)).get(file.object_)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, " is not a JSON object (", simdjson::error_message(error), "); download it again"));
    }
    return file;
  }

  // Nothing where the key is absent or null.
  std::optional<element> Find(const char* key) const {
    element value;
    if (object_[key].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return value;
  }

  simdjson::dom::object object() const { return object_; }

 private:
  std::unique_ptr<simdjson::dom::parser> parser_;
  simdjson::dom::object object_;
};

std::string JsonString(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppend(&quoted, absl::StrFormat("\\u%04x", c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::optional<std::string> Text(std::optional<element> value) {
  std::string_view text;
  if (!value.has_value() || value->get(text) != simdjson::SUCCESS) return std::nullopt;
  return std::string(text);
}

// A special token is spelled as a string, or as an object with its content.
std::optional<std::string> Spelling(std::optional<element> value) {
  element content;
  if (value.has_value() && (*value)["content"].get(content) == simdjson::SUCCESS) value = content;
  return Text(value);
}

// One id, or several.
absl::StatusOr<std::vector<int32_t>> TokenIds(const std::string& where,
                                              std::optional<element> value, int32_t vocabulary) {
  std::vector<int32_t> ids;
  if (!value.has_value()) return ids;
  std::vector<element> items = {*value};
  simdjson::dom::array array;
  if (value->get(array) == simdjson::SUCCESS) items.assign(array.begin(), array.end());
  for (const element item : items) {
    int64_t id = 0;
    if (item.get(id) != simdjson::SUCCESS || id < 0 || id >= vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " has ", std::string(simdjson::minify(item)),
                       ", which is not a token of a vocabulary of ", vocabulary));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// The sampling that generation_config.json names. As vLLM has it, do_sample changes nothing: who
// wants the likeliest token asks for the temperature 0.
absl::StatusOr<SamplingParams> DefaultSampling(const std::string& path, const JsonFile& file) {
  SamplingParams sampling;
  for (const SamplingField& field : kSamplingFields) {
    const std::optional<element> given = file.Find(field.json_key);
    if (!given.has_value()) continue;
    double value = 0;
    if (given->get(value) != simdjson::SUCCESS || !field.Allows(value)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", field.json_key, " is ", std::string(simdjson::minify(*given)),
                       ", which must be a number from ", field.low, " to ", field.high,
                       "; mend it, or take it out"));
    }
    field.set(sampling, value);
  }
  return sampling;
}

// Whether the post-processor puts a special token in front of a text.
bool Begins(element processor) {
  std::string_view type;
  if (processor["type"].get(type) != simdjson::SUCCESS) return false;
  if (type == "Sequence") {
    simdjson::dom::array parts;
    if (processor["processors"].get(parts) != simdjson::SUCCESS) return false;
    return std::any_of(parts.begin(), parts.end(), Begins);
  }
  element first;
  return type == "TemplateProcessing" &&
         processor["single"].at(0)["SpecialToken"].get(first) == simdjson::SUCCESS;
}

// chat_template.jinja, else chat_template of tokenizer_config.json (a string, or several by name),
// else that of chat_template.json.
absl::StatusOr<std::optional<std::string>> TemplateSource(const std::string& folder,
                                                          const JsonFile& tokenizer_config) {
  const std::string path = folder + "/chat_template.jinja";
  if (Exists(path)) {
    ASSIGN_OR_RETURN(std::string source, ReadTextFile(path, kMaxConfigBytes));
    return std::optional<std::string>(std::move(source));
  }
  const std::optional<element> given = tokenizer_config.Find("chat_template");
  simdjson::dom::array named;
  if (given.has_value() && given->get(named) == simdjson::SUCCESS) {
    for (const element item : named) {
      std::string_view name, source;
      if (item["name"].get(name) != simdjson::SUCCESS || name != "default") continue;
      if (item["template"].get(source) == simdjson::SUCCESS) {
        return std::optional<std::string>(std::string(source));
      }
    }
    return absl::InvalidArgumentError(
        absl::StrCat(folder, "/tokenizer_config.json: chat_template has no entry named default"));
  }
  if (given.has_value()) return Text(given);
  ASSIGN_OR_RETURN(const JsonFile other,
                   JsonFile::Read(folder + "/chat_template.json", kMaxConfigBytes));
  return Text(other.Find("chat_template"));
}

// Tokens beyond those of tokenizer.model, as added_tokens_decoder of tokenizer_config.json spells
// them; older folders have them in added_tokens.json, {"<|im_start|>": 32000}.
absl::StatusOr<std::string> AddedTokens(const std::string& folder) {
  ASSIGN_OR_RETURN(const JsonFile config,
                   JsonFile::Read(folder + "/tokenizer_config.json", kMaxConfigBytes));
  if (const auto decoder = config.Find("added_tokens_decoder"); decoder.has_value()) {
    return std::string(simdjson::minify(*decoder));
  }
  const std::string path = folder + "/added_tokens.json";
  ASSIGN_OR_RETURN(const JsonFile added, JsonFile::Read(path, kMaxConfigBytes));
  std::vector<std::string> tokens;
  for (const auto& [spelling, value] : added.object()) {
    int64_t id = 0;
    if (value.get(id) != simdjson::SUCCESS || id < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the id of ", std::string(spelling), " is no number"));
    }
    tokens.push_back(
        absl::StrCat("\"", id, "\":{\"content\":", JsonString(spelling), ",\"special\":true}"));
  }
  return absl::StrCat("{", absl::StrJoin(tokens, ","), "}");
}

// tokenizer.json, else Mistral's tekken.json, else SentencePiece's tokenizer.model.
absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer;
  if (const std::string path = folder + "/tokenizer.json"; Exists(path)) {
    ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path, kMaxTokenizerBytes));
    tokenizer = Tokenizer::FromTokenizerJson(json);
  } else if (const std::string path = folder + "/tekken.json"; Exists(path)) {
    ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path, kMaxTokenizerBytes));
    tokenizer = Tokenizer::FromTekken(json);
  } else if (const std::string path = folder + "/tokenizer.model"; Exists(path)) {
    ASSIGN_OR_RETURN(const std::string model, ReadTextFile(path, kMaxTokenizerBytes));
    ASSIGN_OR_RETURN(const std::string added, AddedTokens(folder));
    tokenizer = Tokenizer::FromSentencePiece(model, added);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(folder,
                     ": tokenizer.json is missing, and so are tekken.json and tokenizer.model; "
                     "download the whole model again, or save its tokenizer with a current "
                     "transformers"));
  }
  if (tokenizer.ok()) return tokenizer;
  return absl::InvalidArgumentError(absl::StrCat(folder, ": ", tokenizer.status().message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelText>> ModelText::FromFolder(const std::string& folder,
                                                                 int64_t vocabulary) {
  std::unique_ptr<ModelText> text(new ModelText());
  ASSIGN_OR_RETURN(text->tokenizer_, OpenTokenizer(folder));
  text->vocabulary_ =
      static_cast<int32_t>(std::min<int64_t>(vocabulary, text->tokenizer_->vocabulary_size()));
  RETURN_IF_ERROR(text->ReadFolderTokens(folder));
  return text;
}

void ModelText::ReadUsualTokens() {
  for (int32_t id = 0; id < vocabulary_; ++id) {
    const absl::string_view token = tokenizer_->TokenSpelling(id);
    if (begin_id_ < 0 && token == "<s>") begin_id_ = id;
    if (end_id_ < 0 && token == "</s>") end_id_ = id;
  }
}

absl::Status ModelText::ReadFolderTokens(const std::string& folder) {
  ASSIGN_OR_RETURN(const JsonFile config, JsonFile::Read(folder + "/config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(const JsonFile generation,
                   JsonFile::Read(folder + "/generation_config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(const JsonFile tokenizer,
                   JsonFile::Read(folder + "/tokenizer.json", kMaxTokenizerBytes));
  ASSIGN_OR_RETURN(const JsonFile tokenizer_config,
                   JsonFile::Read(folder + "/tokenizer_config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(default_sampling_,
                   DefaultSampling(folder + "/generation_config.json", generation));
  const std::optional<std::string> begin = Spelling(tokenizer_config.Find("bos_token"));
  const std::optional<std::string> end = Spelling(tokenizer_config.Find("eos_token"));
  for (int32_t id = 0; id < vocabulary_; ++id) {
    const absl::string_view token = tokenizer_->TokenSpelling(id);
    if (begin_id_ < 0 && token == begin) begin_id_ = id;
    if (end_id_ < 0 && token == end) end_id_ = id;
  }
  ASSIGN_OR_RETURN(const auto config_begin, TokenIds(folder + "/config.json: bos_token_id",
                                                     config.Find("bos_token_id"), vocabulary_));
  if (begin_id_ < 0 && !config_begin.empty()) begin_id_ = config_begin[0];
  ASSIGN_OR_RETURN(const auto config_ends, TokenIds(folder + "/config.json: eos_token_id",
                                                    config.Find("eos_token_id"), vocabulary_));
  ASSIGN_OR_RETURN(const auto ends, TokenIds(folder + "/generation_config.json: eos_token_id",
                                             generation.Find("eos_token_id"), vocabulary_));
  ends_.insert(config_ends.begin(), config_ends.end());
  ends_.insert(ends.begin(), ends.end());
  if (end_id_ < 0 && !config_ends.empty()) end_id_ = config_ends[0];
  const bool is_json = Exists(folder + "/tokenizer.json");
  if (!is_json) ReadUsualTokens();
  if (end_id_ >= 0) ends_.insert(end_id_);
  AddKnownEndings();

  bool adds = !is_json;  // as the tokenizers of Llama, Mistral and Gemma do
  if (const auto flag = tokenizer_config.Find("add_bos_token"); flag.has_value()) {
    if (flag->get(adds) != simdjson::SUCCESS) adds = false;
  }
  const std::optional<element> processor = tokenizer.Find("post_processor");
  add_begin_ = begin_id_ >= 0 && (adds || (processor.has_value() && Begins(*processor)));

  ASSIGN_OR_RETURN(const std::optional<std::string> source,
                   TemplateSource(folder, tokenizer_config));
  return source.has_value() ? ReadTemplate(folder + ": chat_template", *source) : absl::OkStatus();
}

}  // namespace rempart::worker
