// SPDX-License-Identifier: Apache-2.0
// What a model file says about text, put to work: vocabulary, chat template, which token begins a
// text and which end a generation. Immutable, any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/api/request_reader.h"
#include "worker/engine/model_runner.h"
#include "worker/model/gguf.h"
#include "worker/model/model_source.h"
#include "worker/text/text.h"

namespace rempart::worker {

class ModelText : public Vocabulary, public PromptEncoder {
 public:
  // Of a model file or folder.
  static absl::StatusOr<std::unique_ptr<ModelText>> FromSource(const ModelSource& source);
  // general.sampling.temp, top_k, top_p, min_p and penalty_repeat are the sampling of requests that
  // say nothing; its other keys are inert. InvalidArgument names the metadata key at fault.
  static absl::StatusOr<std::unique_ptr<ModelText>> FromGguf(const GgufMetadata& metadata);
  // From tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json and
  // config.json of a folder in Hugging Face layout; only the first and the last must be there.
  // Without tokenizer.json, from Mistral's tekken.json or SentencePiece's tokenizer.model, with
  // <s> and </s> where nothing names BOS and EOS, and BOS in front unless add_bos_token is false.
  // generation_config.json also names the sampling of requests that say nothing: temperature,
  // top_p, top_k, min_p and repetition_penalty; its other fields but eos_token_id are inert.
  // `vocabulary`: rows of the model's embedding; tokens beyond them cannot be used. InvalidArgument
  // names the file at fault.
  static absl::StatusOr<std::unique_ptr<ModelText>> FromFolder(const std::string& folder,
                                                               int64_t vocabulary);

  std::string TokenBytes(int32_t token_id) const override;
  bool EndsGeneration(int32_t token_id) const override;

  int32_t vocabulary_size() const override;
  // Users' text is rendered into the template before it is encoded, as in every engine of the
  // field: the spelling of a control token inside a message counts as that token.
  absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::string_view messages_json,
                                                  absl::string_view variables_json,
                                                  bool add_generation_prompt) const override;
  SamplingParams default_sampling() const override { return default_sampling_; }
  absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view text) const override;
  // The same, but control tokens that the text spells are text.
  absl::StatusOr<std::vector<int32_t>> EncodePlainText(absl::string_view text) const;
  // BOS, where the model begins texts with it.
  std::optional<int32_t> begin_id() const;

 private:
  ModelText() = default;
  absl::Status ReadSpecialTokens(const GgufMetadata& metadata, const TokenizerMetadata& tokenizer);
  absl::Status ReadFolderTokens(const std::string& folder);
  // BOS and EOS by their usual spellings, where nothing names them.
  void ReadUsualTokens();
  // `where` begins the message where the template does not parse. An empty one is none.
  absl::Status ReadTemplate(absl::string_view where, absl::string_view source);
  // Control tokens that end a turn by their name, whatever the files declare.
  void AddKnownEndings();
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, SpecialTokens special) const;

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;  // null: the model has none
  int32_t vocabulary_ = 0;
  int32_t begin_id_ = -1;
  int32_t end_id_ = -1;
  bool add_begin_ = false;
  absl::flat_hash_set<int32_t> ends_;
  SamplingParams default_sampling_;
};

}  // namespace rempart::worker
