// SPDX-License-Identifier: Apache-2.0
// The C ABI of crate/src/lib.rs. Only text.cc calls it.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct RempartTextBuffer {
  uint8_t* data;
  size_t length;
  bool failed;  // the bytes are an error message
};

// Strings laid end to end: string i is bytes[offsets[i], offsets[i + 1]).
struct RempartTextStrings {
  const uint8_t* bytes;
  const uint64_t* offsets;
  size_t count;
};

struct RempartTextVocabulary {
  const uint8_t* model;
  size_t model_length;
  const uint8_t* pre;
  size_t pre_length;
  RempartTextStrings tokens;
  RempartTextStrings merges;
  const float* scores;
  size_t scores_count;
  const int32_t* types;
  size_t types_count;
  bool add_space_prefix;
};

struct RempartTokenizer;
struct RempartChatTemplate;

void rempart_text_free(RempartTextBuffer buffer);
RempartTokenizer* rempart_tokenizer_from_gguf(const RempartTextVocabulary* vocabulary,
                                              RempartTextBuffer* error);
RempartTokenizer* rempart_tokenizer_from_json(const uint8_t* data, size_t length,
                                              RempartTextBuffer* error);
RempartTokenizer* rempart_tokenizer_from_tekken(const uint8_t* data, size_t length,
                                                RempartTextBuffer* error);
RempartTokenizer* rempart_tokenizer_from_sentencepiece(const uint8_t* data, size_t length,
                                                       const uint8_t* added, size_t added_length,
                                                       RempartTextBuffer* error);
void rempart_tokenizer_drop(RempartTokenizer* tokenizer);
size_t rempart_tokenizer_size(const RempartTokenizer* tokenizer);
RempartTextBuffer rempart_tokenizer_encode(const RempartTokenizer* tokenizer, const uint8_t* data,
                                           size_t length, bool parse_special);
const uint8_t* rempart_token_bytes(const RempartTokenizer* tokenizer, uint32_t id, size_t* length,
                                   bool* special);
bool rempart_ends_by_name(const uint8_t* data, size_t length);
RempartChatTemplate* rempart_template_new(const uint8_t* data, size_t length,
                                          RempartTextBuffer* error);
void rempart_template_drop(RempartChatTemplate* chat_template);
RempartTextBuffer rempart_template_render(const RempartChatTemplate* chat_template,
                                          const uint8_t* data, size_t length, size_t max_output,
                                          int64_t unix_seconds);
}
