// SPDX-License-Identifier: Apache-2.0
// Any bytes from a client are a complete message, a part of one, or refused with a status; a body
// that comes through is read by the handlers' parsers, which answer with a request or a 4xx.
#include <cstdint>
#include <variant>

#include "common/check.h"
#include "router/api/openai/requests.h"
#include "router/http/http_message.h"

namespace {

using rempart::router::ApiError;

constexpr rempart::router::HttpLimits kLimits = {.max_header_bytes = 4096, .max_body_bytes = 65536};

template <typename Answer>
void CheckAnswer(const Answer& answer) {
  const auto* error = std::get_if<ApiError>(&answer);
  if (error == nullptr) return;
  CHECK(error->status >= 400 && error->status < 500) << error->status;
  CHECK(!error->message.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto message = rempart::router::ParseMessage(bytes, kLimits);
  CHECK(message.bytes_used <= size) << message.bytes_used;
  if (message.error_status != 0) {
    CHECK(!message.complete);
    CHECK(message.error_status >= 400 && message.error_status < 500) << message.error_status;
    return 0;
  }
  if (!message.complete) return 0;
  CHECK(message.request.body.size() <= kLimits.max_body_bytes);
  CheckAnswer(rempart::router::openai::ReadChatRequest(message.request.body));
  CheckAnswer(rempart::router::openai::ReadCompletionRequest(message.request.body));
  return 0;
}
