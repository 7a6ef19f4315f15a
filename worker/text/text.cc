// SPDX-License-Identifier: Apache-2.0
#include "worker/text/text.h"

#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/text/abi.h"

namespace rempart::worker {
namespace {

const uint8_t* Bytes(absl::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// The bytes of a buffer, or its message as a status; frees the buffer.
absl::StatusOr<std::string> Take(RempartTextBuffer buffer) {
  std::string bytes(reinterpret_cast<const char*>(buffer.data), buffer.length);
  const bool failed = buffer.failed;
  rempart_text_free(buffer);
  if (failed) return absl::InvalidArgumentError(bytes);
  return bytes;
}

class PackedStrings {
 public:
  explicit PackedStrings(const std::vector<std::string>& strings) {
    offsets_.reserve(strings.size() + 1);
    offsets_.push_back(0);
    for (const std::string& string : strings) {
      bytes_ += string;
      offsets_.push_back(bytes_.size());
    }
  }
  RempartTextStrings view() const {
    return {reinterpret_cast<const uint8_t*>(bytes_.data()), offsets_.data(), offsets_.size() - 1};
  }

 private:
  std::string bytes_;
  std::vector<uint64_t> offsets_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const TokenizerMetadata& metadata) {
  const PackedStrings tokens(metadata.tokens);
  const PackedStrings merges(metadata.merges);
  const RempartTextVocabulary vocabulary = {
      .model = Bytes(metadata.model),
      .model_length = metadata.model.size(),
      .pre = Bytes(metadata.pre),
      .pre_length = metadata.pre.size(),
      .tokens = tokens.view(),
      .merges = merges.view(),
      .scores = metadata.scores.data(),
      .scores_count = metadata.scores.size(),
      .types = metadata.types.data(),
      .types_count = metadata.types.size(),
      .add_space_prefix = metadata.add_space_prefix,
  };
  RempartTextBuffer error;
  RempartTokenizer* handle = rempart_tokenizer_from_gguf(&vocabulary, &error);
  const absl::StatusOr<std::string> outcome = Take(error);
  if (!outcome.ok()) return outcome.status();
  return std::unique_ptr<Tokenizer>(new Tokenizer(handle));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTokenizerJson(absl::string_view json) {
  RempartTextBuffer error;
  RempartTokenizer* handle = rempart_tokenizer_from_json(Bytes(json), json.size(), &error);
  const absl::StatusOr<std::string> outcome = Take(error);
  if (!outcome.ok()) return outcome.status();
  return std::unique_ptr<Tokenizer>(new Tokenizer(handle));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTekken(absl::string_view json) {
  RempartTextBuffer error;
  RempartTokenizer* handle = rempart_tokenizer_from_tekken(Bytes(json), json.size(), &error);
  const absl::StatusOr<std::string> outcome = Take(error);
  if (!outcome.ok()) return outcome.status();
  return std::unique_ptr<Tokenizer>(new Tokenizer(handle));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromSentencePiece(
    absl::string_view model, absl::string_view added_tokens) {
  RempartTextBuffer error;
  RempartTokenizer* handle = rempart_tokenizer_from_sentencepiece(
      Bytes(model), model.size(), Bytes(added_tokens), added_tokens.size(), &error);
  const absl::StatusOr<std::string> outcome = Take(error);
  if (!outcome.ok()) return outcome.status();
  return std::unique_ptr<Tokenizer>(new Tokenizer(handle));
}

Tokenizer::~Tokenizer() { rempart_tokenizer_drop(handle_); }

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       SpecialTokens special) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes; the limit is ", kMaxTextBytes));
  }
  absl::StatusOr<std::string> bytes = Take(rempart_tokenizer_encode(
      handle_, Bytes(text), text.size(), special == SpecialTokens::kParsed));
  if (!bytes.ok()) return bytes.status();
  std::vector<int32_t> ids(bytes->size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), bytes->data(), bytes->size());
  return ids;
}

absl::string_view Tokenizer::TokenSpelling(int32_t token_id) const {
  size_t length = 0;
  bool control = false;
  const uint8_t* bytes =
      rempart_token_bytes(handle_, static_cast<uint32_t>(token_id), &length, &control);
  if (bytes == nullptr) return {};
  return {reinterpret_cast<const char*>(bytes), length};
}

bool Tokenizer::IsControl(int32_t token_id) const {
  size_t length = 0;
  bool control = false;
  rempart_token_bytes(handle_, static_cast<uint32_t>(token_id), &length, &control);
  return control;
}

absl::string_view Tokenizer::TokenBytes(int32_t token_id) const {
  if (IsControl(token_id)) return {};
  return TokenSpelling(token_id);
}

int32_t Tokenizer::vocabulary_size() const {
  return static_cast<int32_t>(rempart_tokenizer_size(handle_));
}

bool EndsByName(absl::string_view spelling) {
  return rempart_ends_by_name(Bytes(spelling), spelling.size());
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(absl::string_view source) {
  RempartTextBuffer error;
  RempartChatTemplate* handle = rempart_template_new(Bytes(source), source.size(), &error);
  const absl::StatusOr<std::string> outcome = Take(error);
  if (!outcome.ok()) return outcome.status();
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(handle));
}

ChatTemplate::~ChatTemplate() { rempart_template_drop(handle_); }

absl::StatusOr<std::string> ChatTemplate::Render(absl::string_view variables_json,
                                                 int64_t unix_seconds) const {
  return Take(rempart_template_render(handle_, Bytes(variables_json), variables_json.size(),
                                      kMaxOutputBytes, unix_seconds));
}

}  // namespace rempart::worker
