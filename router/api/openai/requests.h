// SPDX-License-Identifier: Apache-2.0
// OpenAI's request bodies, read into neutral requests. Pure functions; any thread.
#pragma once

#include <variant>

#include "absl/strings/string_view.h"
#include "router/api/request.h"

namespace rempart::router::openai {

// POST /v1/chat/completions.
std::variant<ApiRequest, ApiError> ReadChatRequest(absl::string_view body);
// POST /v1/completions.
std::variant<ApiRequest, ApiError> ReadCompletionRequest(absl::string_view body);

}  // namespace rempart::router::openai
