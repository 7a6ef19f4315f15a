// SPDX-License-Identifier: Apache-2.0
// Text of others, such as names in a file that nobody vouches for, made fit for a line of a log, a
// terminal and a protobuf string.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace rempart {

// The same text, with control characters and bytes that are no UTF-8 as \n, \t or \xHH: one line,
// valid UTF-8, and nothing that a terminal obeys.
std::string Printable(absl::string_view text);

// The same; of more than `max_bytes`, the beginning and the end, where messages say what is wrong
// and what to do, and how much is left out between them.
std::string Printable(absl::string_view text, size_t max_bytes);

}  // namespace rempart
