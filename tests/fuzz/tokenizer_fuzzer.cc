// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json, tekken.json or tokenizer.model make a tokenizer or are refused; a
// tokenizer encodes, and its ids are tokens that it has. What follows the first zero byte is the
// text to encode.
#include <algorithm>
#include <cstdint>
#include <memory>

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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(bytes.find('\0'), size);
  constexpr char kText[] = "Hello, w\xc3\xb6rld <s> 123";
  const absl::string_view text = zero < size ? bytes.substr(zero + 1) : kText;
  Encode(Tokenizer::FromTokenizerJson(bytes.substr(0, zero)), text);
  Encode(Tokenizer::FromTekken(bytes.substr(0, zero)), text);
  Encode(Tokenizer::FromSentencePiece(bytes, "{}"), kText);
  return 0;
}
