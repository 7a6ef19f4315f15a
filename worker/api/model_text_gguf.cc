// SPDX-License-Identifier: Apache-2.0
// ModelText from the metadata of a GGUF file.
#include <simdjson.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/status_macros.h"
#include "worker/api/default_sampling.h"
#include "worker/api/model_text.h"
#include "worker/model/gguf.h"
#include "worker/text/text.h"

namespace rempart::worker {
namespace {

// Tokens that end what a model of code fills in. A file names them by a key, or they are known by
// their spellings, where the file calls them control or user-defined.
struct FillInEnding {
  const char* key;
  std::array<absl::string_view, 5> spellings;
};
constexpr std::array<FillInEnding, 3> kFillInEndings = {{
    {"tokenizer.ggml.fim_pad_token_id",
     {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {"tokenizer.ggml.fim_rep_token_id",
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {"tokenizer.ggml.fim_sep_token_id", {"<|file_sep|>"}},
}};

constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;
constexpr int32_t kByte = 6;

std::vector<std::string> Copy(absl::Span<const absl::string_view> views) {
  std::vector<std::string> strings;
  strings.reserve(views.size());
  for (absl::string_view view : views) strings.emplace_back(view);
  return strings;
}

absl::StatusOr<std::vector<int32_t>> ReadTypes(const GgufMetadata& metadata, size_t vocabulary) {
  constexpr char kKey[] = "tokenizer.ggml.token_type";
  ASSIGN_OR_RETURN(const std::vector<int64_t> types, metadata.Ints(kKey));
  if (types.size() != vocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", kKey, " has ", types.size(), " entries for ", vocabulary,
                     " tokens; convert the model with a current converter"));
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] >= 0 && types[i] <= kByte) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "metadata ", kKey, "[", i, "] is ", types[i],
        ", must be 0 (undefined), 1 (normal), 2 (unknown), 3 (control), 4 (user defined), 5 "
        "(unused) or 6 (byte); convert the model with a current converter"));
  }
  return std::vector<int32_t>(types.begin(), types.end());
}

absl::StatusOr<TokenizerMetadata> ReadTokenizer(const GgufMetadata& metadata) {
  TokenizerMetadata tokenizer;
  ASSIGN_OR_RETURN(absl::string_view model, metadata.String("tokenizer.ggml.model"));
  ASSIGN_OR_RETURN(absl::string_view pre, metadata.String("tokenizer.ggml.pre", ""));
  ASSIGN_OR_RETURN(auto tokens, metadata.Strings("tokenizer.ggml.tokens"));
  if (tokens.empty()) {
    return absl::InvalidArgumentError(
        "metadata tokenizer.ggml.tokens is empty; convert the model with a current converter");
  }
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
    ASSIGN_OR_RETURN(tokenizer.types, ReadTypes(metadata, tokens.size()));
  }
  ASSIGN_OR_RETURN(tokenizer.add_space_prefix,
                   metadata.Bool("tokenizer.ggml.add_space_prefix", true));
  return tokenizer;
}

// The id under `key`, or `fallback` when the file has none. InvalidArgument outside the vocabulary.
absl::StatusOr<int32_t> SpecialId(const GgufMetadata& metadata, const std::string& key,
                                  size_t vocabulary, int32_t fallback = -1) {
  if (!metadata.Has(key)) return fallback;
  ASSIGN_OR_RETURN(uint64_t id, metadata.Uint(key));
  if (id >= vocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is ", id, ", outside the vocabulary of ", vocabulary, " tokens"));
  }
  return static_cast<int32_t>(id);
}

// -1 where the vocabulary has none.
int32_t IdOf(const TokenizerMetadata& tokenizer, const FillInEnding& ending) {
  for (size_t id = 0; id < tokenizer.types.size(); ++id) {
    if (tokenizer.types[id] != kControl && tokenizer.types[id] != kUserDefined) continue;
    for (const absl::string_view spelling : ending.spellings) {
      if (!spelling.empty() && tokenizer.tokens[id] == spelling) return static_cast<int32_t>(id);
    }
  }
  return -1;
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

}  // namespace

absl::StatusOr<std::unique_ptr<ModelText>> ModelText::FromGguf(const GgufMetadata& metadata) {
  std::unique_ptr<ModelText> text(new ModelText());
  ASSIGN_OR_RETURN(const TokenizerMetadata tokenizer, ReadTokenizer(metadata));
  ASSIGN_OR_RETURN(text->tokenizer_, Tokenizer::FromGguf(tokenizer));
  text->vocabulary_ = text->tokenizer_->vocabulary_size();
  RETURN_IF_ERROR(text->ReadSpecialTokens(metadata, tokenizer));
  ASSIGN_OR_RETURN(text->default_sampling_, DefaultSampling(metadata));
  if (metadata.Has("tokenizer.chat_template")) {
    ASSIGN_OR_RETURN(absl::string_view source, metadata.String("tokenizer.chat_template"));
    RETURN_IF_ERROR(text->ReadTemplate("metadata tokenizer.chat_template", source));
  }
  return text;
}

absl::Status ModelText::ReadSpecialTokens(const GgufMetadata& metadata,
                                          const TokenizerMetadata& tokenizer) {
  const size_t count = tokenizer.tokens.size();
  // Where the file does not say: the places of Llama's <s> and </s>, as llama.cpp has it.
  const auto usual = [&](size_t id) {
    const bool there = tokenizer.model == "llama" && tokenizer.types.size() > id;
    return there && tokenizer.types[id] == kControl ? static_cast<int32_t>(id) : -1;
  };
  ASSIGN_OR_RETURN(begin_id_, SpecialId(metadata, "tokenizer.ggml.bos_token_id", count, usual(1)));
  ASSIGN_OR_RETURN(end_id_, SpecialId(metadata, "tokenizer.ggml.eos_token_id", count, usual(2)));
  // Without a word in the file: SentencePiece models begin with BOS, and so do Llama 3 and Mistral.
  bool begins = tokenizer.model == "llama";
  for (const char* pre : {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"}) {
    begins = begins || tokenizer.pre == pre;
  }
  ASSIGN_OR_RETURN(add_begin_, metadata.Bool("tokenizer.ggml.add_bos_token", begins));
  add_begin_ = add_begin_ && begin_id_ >= 0;
  for (const int32_t id : {begin_id_, end_id_}) {
    const absl::string_view spelling = tokenizer_->TokenSpelling(id);
    if (simdjson::validate_utf8(spelling.data(), spelling.size())) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        id == begin_id_ ? "tokenizer.ggml.bos_token_id" : "tokenizer.ggml.eos_token_id", " is ", id,
        ", a token whose spelling is not UTF-8; convert the model with a current converter"));
  }
  ends_.insert(end_id_);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const int32_t id, SpecialId(metadata, key, count));
    ends_.insert(id);
  }
  for (const FillInEnding& ending : kFillInEndings) {
    ASSIGN_OR_RETURN(const int32_t id, SpecialId(metadata, ending.key, count));
    ends_.insert(id >= 0 ? id : IdOf(tokenizer, ending));
  }
  ends_.erase(-1);  // of keys that are not there
  AddKnownEndings();
  return absl::OkStatus();
}

}  // namespace rempart::worker
