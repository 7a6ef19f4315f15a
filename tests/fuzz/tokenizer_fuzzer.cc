// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json make a tokenizer or are refused; a tokenizer encodes, and its ids are
// tokens that it has. What follows the first zero byte is the text to encode.
#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "worker/text/text.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rempart::worker;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(bytes.find('\0'), size);
  const auto tokenizer = Tokenizer::FromTokenizerJson(bytes.substr(0, zero));
  if (!tokenizer.ok()) {
    CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  const absl::string_view text = zero < size ? bytes.substr(zero + 1) : "Hello, wörld <s> 123";
  for (const SpecialTokens special : {SpecialTokens::kPlain, SpecialTokens::kParsed}) {
    const auto ids = (*tokenizer)->Encode(text, special);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      CHECK(id >= 0 && id < (*tokenizer)->vocabulary_size()) << id;
      (void)(*tokenizer)->TokenBytes(id);
    }
  }
  return 0;
}
