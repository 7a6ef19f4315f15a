// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, and conversations to text: what a model's vocabulary and chat
// template define. The work is done by the Rust crate beside this file; all methods are
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct RempartTokenizer;
struct RempartChatTemplate;

namespace rempart::worker {

// The vocabulary as GGUF spells it (keys tokenizer.ggml.*).
struct TokenizerMetadata {
  std::string model;  // "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;    // pre-tokenizer, of gpt2 only: "smollm", "llama-bpe", "qwen2"...
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  std::vector<std::string> merges;
  bool add_space_prefix = true;  // of llama only
};

// Whether the spelling of a control token ("<|im_end|>") in the text means that token. Text that a
// chat template has rendered is kParsed; text from a user is kPlain, so that nobody ends a turn by
// writing its end.
enum class SpecialTokens { kPlain, kParsed };

class Tokenizer {
 public:
  // InvalidArgument names the metadata key at fault.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const TokenizerMetadata& metadata);
  // `json` is the content of a Hugging Face tokenizer.json.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromTokenizerJson(absl::string_view json);

  // `json` is the content of Mistral's tekken.json, of any version up to those known to
  // mistral-common 1.13. A control token's spelling never means it in kPlain text.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromTekken(absl::string_view json);
  // `model` is the content of SentencePiece's tokenizer.model: BPE whose normalizer leaves text as
  // it is. `added_tokens`: a JSON object as tokenizer_config.json's added_tokens_decoder.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromSentencePiece(
      absl::string_view model, absl::string_view added_tokens);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Adds neither BOS nor EOS. InvalidArgument when the text is not UTF-8 (with the byte offset) or
  // longer than kMaxTextBytes.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, SpecialTokens special) const;

  // The bytes that a token adds to a text: they may end inside a character. Empty for ids outside
  // the vocabulary and for control tokens; TokenSpelling gives the latter's name.
  absl::string_view TokenBytes(int32_t token_id) const;
  absl::string_view TokenSpelling(int32_t token_id) const;
  bool IsControl(int32_t token_id) const;

  int32_t vocabulary_size() const;

  static constexpr size_t kMaxTextBytes = size_t{64} << 20;

 private:
  explicit Tokenizer(RempartTokenizer* handle) : handle_(handle) {}

  RempartTokenizer* handle_;
};

// Whether a control token of this spelling ends a turn or a text, whatever the model's files
// declare
// ("<|im_end|>").
bool EndsByName(absl::string_view spelling);

class ChatTemplate {
 public:
  // `source` is Jinja as in GGUF's tokenizer.chat_template. InvalidArgument says the line at fault.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(absl::string_view source);

  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // `variables_json`: an object with messages, add_generation_prompt, bos_token, eos_token,
  // tools... `unix_seconds` is what strftime_now tells. InvalidArgument carries the template's own
  // complaint (raise_exception), an undefined variable, or that the work or output budget ran out.
  absl::StatusOr<std::string> Render(absl::string_view variables_json, int64_t unix_seconds) const;

  static constexpr size_t kMaxOutputBytes = size_t{64} << 20;

 private:
  explicit ChatTemplate(RempartChatTemplate* handle) : handle_(handle) {}

  RempartChatTemplate* handle_;
};

}  // namespace rempart::worker
