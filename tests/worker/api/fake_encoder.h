// SPDX-License-Identifier: Apache-2.0
// One token per byte; a conversation is its JSON.
#pragma once

#include <string>
#include <vector>

#include "tests/worker/engine/fake_model.h"
#include "worker/api/request_reader.h"

namespace rempart::worker {

class FakeEncoder : public PromptEncoder {
 public:
  int32_t vocabulary_size() const override { return kFakeVocabulary; }
  absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::string_view messages_json,
                                                  absl::string_view variables_json,
                                                  bool) const override {
    if (variables_json == "refuse") return absl::InvalidArgumentError("roles must alternate");
    return EncodeText(messages_json);
  }
  absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view text) const override {
    std::vector<int32_t> ids;
    for (char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
};

}  // namespace rempart::worker
