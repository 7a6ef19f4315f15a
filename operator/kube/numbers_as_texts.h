// SPDX-License-Identifier: Apache-2.0
// Objects of the API server as their protobuf messages spell them.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>

#include "absl/strings/string_view.h"

namespace rempart::op {

// The JSON of a message, with whole numbers as texts ("2") in the maps that may have both
// (option int_or_string of proto/crd/options.proto), for protobuf reads no number into a text.
// What is no JSON object, or has no such number, comes back as it is.
std::string NumbersAsTexts(const google::protobuf::Descriptor* message, absl::string_view json);

}  // namespace rempart::op
