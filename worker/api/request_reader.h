// SPDX-License-Identifier: Apache-2.0
// The border for requests: a Start message becomes a SequenceRequest that is valid in all but the
// room it needs, or a Failure that names the field. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/variant.h"
#include "proto/worker/v1/worker.pb.h"
#include "worker/engine/model_runner.h"
#include "worker/engine/sequence.h"
#include "worker/model/sampling.h"

namespace rempart::worker {

// From text to token ids, for one model. Any thread.
class PromptEncoder {
 public:
  virtual ~PromptEncoder() = default;
  virtual int32_t vocabulary_size() const = 0;
  // Renders the conversation with the model's template and encodes it. InvalidArgument, written for
  // the client, when the template refuses it or the model has none.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::string_view messages_json,
                                                          absl::string_view variables_json,
                                                          bool add_generation_prompt) const = 0;
  // What holds where a request says nothing: the model's own, where its files name any.
  virtual SamplingParams default_sampling() const { return {}; }
  // Raw text, with the special tokens that the model puts in front.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view text) const = 0;
};

// `drawn_seed` is used when the client gives no seed. The request id is left 0.
absl::variant<SequenceRequest, Failure> ReadStart(const v1::Start& start,
                                                  const PromptEncoder& encoder,
                                                  const Vocabulary& vocabulary, absl::Time now,
                                                  uint64_t drawn_seed);

// The `messages` array as chat templates see it.
std::string MessagesJson(const v1::ChatPrompt& chat);

}  // namespace rempart::worker
