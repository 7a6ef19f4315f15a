// SPDX-License-Identifier: Apache-2.0
// The text side of one continuation: joins token bytes to whole UTF-8 characters and looks for stop
// strings across token boundaries. Text that may still become a stop string is held back.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rempart::worker {

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stop) : stop_(std::move(stop)) {}

  // Adds a token's bytes and returns the text that is now safe to send. After a stop string
  // (`stopped()`) it returns nothing more.
  std::string Append(absl::string_view token_bytes);
  // What was held back, when generation ends for another reason than a stop string. Bytes that
  // never became a character are replaced by U+FFFD.
  std::string Flush();

  bool stopped() const { return stopped_; }
  const std::string& matched_stop() const { return matched_stop_; }

 private:
  std::vector<std::string> stop_;
  std::string bytes_;  // the start of a UTF-8 character
  std::string held_;   // whole characters that may begin a stop string
  bool stopped_ = false;
  std::string matched_stop_;
};

// Moves all whole characters out of `bytes`, bytes that cannot be UTF-8 as U+FFFD each; what may
// still become a character stays.
std::string TakeWholeCharacters(std::string& bytes);

}  // namespace rempart::worker
