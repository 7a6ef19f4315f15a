// SPDX-License-Identifier: Apache-2.0
// A folder whose files are trusted, because nobody but this user can have put them there.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace rempart {

// Makes `folder`, and those above it, where they are missing. FailedPrecondition, naming `what` it
// is ("the repack cache"), the folder and the fix, when it cannot be made, is no folder, belongs to
// another user, or may be written to by anybody else.
absl::Status MakeOwnFolder(absl::string_view what, const std::string& folder);

// The same, and FailedPrecondition when nothing can be written there either.
absl::Status MakeWritableFolder(absl::string_view what, const std::string& folder);

}  // namespace rempart
