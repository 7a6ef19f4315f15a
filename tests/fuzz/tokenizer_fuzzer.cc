// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json, tekken.json, tokenizer.model or a GGUF's vocabulary make a tokenizer
// or are refused; a tokenizer encodes, and its ids are tokens that it has. What follows the first
// zero byte is the text to encode. Of a GGUF's vocabulary each line is a value, its first letter
// says of which key: m(odel), p(re), s(core) of a token, + a merge, a digit a token of that type.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "worker/text/text.h"

namespace {

using namespace rempart::worker;

void Encode(const absl::StatusOr<std::unique_ptr<Tokenizer>>& tokenizer, absl::string_view text) {
  if (!tokenizer.ok()) {
    CHECK(!tokenizer.status().message().empty());
    return;
  }
  for (const SpecialTokens special : {SpecialTokens::kPlain, SpecialTokens::kParsed}) {
    const auto ids = (*tokenizer)->Encode(text, special);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      CHECK(id >= 0 && id < (*tokenizer)->vocabulary_size()) << id;
      (void)(*tokenizer)->TokenBytes(id);
    }
  }
}

TokenizerMetadata Vocabulary(absl::string_view lines) {
  TokenizerMetadata metadata;
  for (const absl::string_view line : absl::StrSplit(lines, '\n')) {
    if (line.empty()) continue;
    const std::string value(line.substr(1));
    float score = 0;
    if (line[0] == 'm') {
      metadata.model = value;
    } else if (line[0] == 'p') {
      metadata.pre = value;
    } else if (line[0] == '+') {
      metadata.merges.push_back(value);
    } else if (line[0] == 's' && absl::SimpleAtof(value, &score)) {
      metadata.scores.push_back(score);
    } else {
      metadata.tokens.push_back(value);
      metadata.types.push_back(line[0] - '0');
    }
  }
  return metadata;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(bytes.find('\0'), size);
  constexpr char kText[] = "Hello, w\xc3\xb6rld <s> 123";
  const absl::string_view text = zero < size ? bytes.substr(zero + 1) : kText;
  Encode(Tokenizer::FromTokenizerJson(bytes.substr(0, zero)), text);
  Encode(Tokenizer::FromTekken(bytes.substr(0, zero)), text);
  Encode(Tokenizer::FromSentencePiece(bytes, "{}"), kText);
  Encode(Tokenizer::FromGguf(Vocabulary(bytes.substr(0, zero))), text);
  return 0;
}
