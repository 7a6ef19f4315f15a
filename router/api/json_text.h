// SPDX-License-Identifier: Apache-2.0
// Writing JSON by appending to a string.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace rempart::router {

// Appends `text` as a JSON string. What is not UTF-8 becomes U+FFFD.
void AppendJsonString(std::string& out, absl::string_view text);
std::string JsonString(absl::string_view text);
// Shortest decimal that reads back as the same float; JSON has no infinities, so they are clamped.
std::string JsonNumber(float value);

}  // namespace rempart::router
