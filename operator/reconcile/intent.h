// SPDX-License-Identifier: Apache-2.0
// Whether an object is already as it would be applied, so that nothing needs to be written: after a
// restart, too, because what tells it stands in the object. Pure.
//
// An applied object carries a digest of the intent (annotation rempart.dev/intent). The digest
// alone does not tell that somebody has changed the object since, and the fields alone do not tell
// that the intent once had more of them, which an apply would remove: both must agree.
#pragma once

#include <string>

#include "google/protobuf/message.h"

namespace rempart::op {

inline constexpr char kIntentAnnotation[] = "rempart.dev/intent";

// 16 hex digits; equal for equal messages, in every process.
std::string IntentDigest(const google::protobuf::Message& intent);

// Whether every field that the intent states has its value in `live`. What the API server, or
// somebody else, has added beside them does not matter; an entry more in a list does. Quantities
// are equal when they mean the same ("1000m", "1").
bool HoldsIntent(const google::protobuf::Message& live, const google::protobuf::Message& intent);

}  // namespace rempart::op
