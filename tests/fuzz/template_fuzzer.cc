// SPDX-License-Identifier: Apache-2.0
// Any bytes as a chat template render, within their budget, or are refused. What follows the first
// zero byte is the JSON that the template sees; without one it is a conversation.
#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "worker/text/text.h"

namespace {

constexpr absl::string_view kConversation =
    R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi <|x|>"}],
        "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "tools": []})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rempart::worker;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(bytes.find('\0'), size);
  const auto chat_template = ChatTemplate::Create(bytes.substr(0, zero));
  if (!chat_template.ok()) {
    CHECK(!chat_template.status().message().empty());
    return 0;
  }
  const auto text =
      (*chat_template)->Render(zero < size ? bytes.substr(zero + 1) : kConversation, 1700000000);
  if (!text.ok()) return 0;
  CHECK(text->size() <= ChatTemplate::kMaxOutputBytes) << text->size();
  return 0;
}
