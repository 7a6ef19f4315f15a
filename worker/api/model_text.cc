// SPDX-License-Identifier: Apache-2.0
#include "worker/api/model_text.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/api/default_sampling.h"

namespace rempart::worker {
namespace {

// Control tokens that end a turn under these names, whatever the file declares as its EOS.
constexpr std::array<absl::string_view, 8> kEndings = {
    "</s>",       "<|eot_id|>",    "<|im_end|>",    "<|end|>",
    "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"};

std::vector<std::string> Copy(absl::Span<const absl::string_view> views) {
  std::vector<std::string> strings;
  strings.reserve(views.size());
  for (absl::string_view view : views) strings.emplace_back(view);
  return strings;
}

absl::StatusOr<TokenizerMetadata> ReadTokenizer(const GgufMetadata& metadata) {
  TokenizerMetadata tokenizer;
  ASSIGN_OR_RETURN(absl::string_view model, metadata.String("tokenizer.ggml.model"));
  ASSIGN_OR_RETURN(absl::string_view pre, metadata.String("tokenizer.ggml.pre", ""));
  ASSIGN_OR_RETURN(auto tokens, metadata.Strings("tokenizer.ggml.tokens"));
  tokenizer.model = std::string(model);
  tokenizer.pre = std::string(pre);
  tokenizer.tokens = Copy(tokens);
  if (metadata.Has("tokenizer.ggml.merges")) {
    ASSIGN_OR_RETURN(auto merges, metadata.Strings("tokenizer.ggml.merges"));
    tokenizer.merges = Copy(merges);
  }
  if (metadata.Has("tokenizer.ggml.scores")) {
    ASSIGN_OR_RETURN(tokenizer.scores, metadata.Floats("tokenizer.ggml.scores"));
  }
  if (metadata.Has("tokenizer.ggml.token_type")) {
    ASSIGN_OR_RETURN(auto types, metadata.Ints("tokenizer.ggml.token_type"));
    tokenizer.types.assign(types.begin(), types.end());
  }
  ASSIGN_OR_RETURN(tokenizer.add_space_prefix,
                   metadata.Bool("tokenizer.ggml.add_space_prefix", true));
  return tokenizer;
}

// The id under `key`, or -1 when the file has none. InvalidArgument outside the vocabulary.
absl::StatusOr<int32_t> SpecialId(const GgufMetadata& metadata, const std::string& key,
                                  size_t vocabulary) {
  if (!metadata.Has(key)) return -1;
  ASSIGN_OR_RETURN(uint64_t id, metadata.Uint(key));
  if (id >= vocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is ", id, ", outside the vocabulary of ", vocabulary, " tokens"));
  }
  return static_cast<int32_t>(id);
}

// The sampling that the file names. Others of general.sampling are samplers that requests do not
// have here (mirostat, xtc) or their order.
absl::StatusOr<SamplingParams> DefaultSampling(const GgufMetadata& metadata) {
  SamplingParams sampling;
  for (const SamplingField& field : kSamplingFields) {
    if (!metadata.Has(field.gguf_key)) continue;
    ASSIGN_OR_RETURN(const double value, metadata.Float(field.gguf_key));
    if (!field.Allows(value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata ", field.gguf_key, " is ", value, ", which must be a number from ",
                       field.low, " to ", field.high, "; convert the model with ", field.json_key,
                       " mended in its generation_config.json, or without it"));
    }
    field.set(sampling, value);
  }
  return sampling;
}

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

absl::StatusOr<std::unique_ptr<ModelText>> ModelText::FromGguf(const GgufMetadata& metadata) {
  std::unique_ptr<ModelText> text(new ModelText());
  ASSIGN_OR_RETURN(const TokenizerMetadata tokenizer, ReadTokenizer(metadata));
  ASSIGN_OR_RETURN(text->tokenizer_, Tokenizer::FromGguf(tokenizer));
  text->vocabulary_ = text->tokenizer_->vocabulary_size();
  RETURN_IF_ERROR(text->ReadSpecialTokens(metadata, tokenizer));
  ASSIGN_OR_RETURN(text->default_sampling_, DefaultSampling(metadata));
  if (metadata.Has("tokenizer.chat_template")) {
    ASSIGN_OR_RETURN(absl::string_view source, metadata.String("tokenizer.chat_template"));
    ASSIGN_OR_RETURN(text->template_, ChatTemplate::Create(source));
  }
  return text;
}

absl::Status ModelText::ReadSpecialTokens(const GgufMetadata& metadata,
                                          const TokenizerMetadata& tokenizer) {
  const size_t count = tokenizer.tokens.size();
  ASSIGN_OR_RETURN(begin_id_, SpecialId(metadata, "tokenizer.ggml.bos_token_id", count));
  ASSIGN_OR_RETURN(end_id_, SpecialId(metadata, "tokenizer.ggml.eos_token_id", count));
  // Without a word in the file: SentencePiece models begin with BOS, and so do Llama 3 and Mistral.
  bool begins = tokenizer.model == "llama";
  for (const char* pre : {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"}) {
    begins = begins || tokenizer.pre == pre;
  }
  ASSIGN_OR_RETURN(add_begin_, metadata.Bool("tokenizer.ggml.add_bos_token", begins));
  add_begin_ = add_begin_ && begin_id_ >= 0;
  if (end_id_ >= 0) ends_.insert(end_id_);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const int32_t id, SpecialId(metadata, key, count));
    if (id >= 0) ends_.insert(id);
  }
  AddKnownEndings();
  return absl::OkStatus();
}

void ModelText::AddKnownEndings() {
  for (int32_t id = 0; id < vocabulary_; ++id) {
    const absl::string_view token = tokenizer_->TokenSpelling(id);
    if (std::find(kEndings.begin(), kEndings.end(), token) == kEndings.end()) continue;
    if (tokenizer_->IsControl(id)) ends_.insert(id);
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
