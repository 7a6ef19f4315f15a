// SPDX-License-Identifier: Apache-2.0
// What the engine needs of a model: one forward pass over a mixed batch, and the meaning of a token
// id. The real ones adapt worker/model and worker/text; the test's compute something small.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "worker/model/step_batch.h"

namespace rempart::worker {

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual int32_t vocabulary_size() const = 0;
  // Computes every slice; row i of `logits` [num_wanting, vocabulary_size] belongs to the i-th
  // slice that wants them. Engine thread only. An error fails the batch's requests, not the
  // process.
  virtual absl::Status Forward(const StepBatch& batch, absl::Span<float> logits) = 0;
};

// Immutable, any thread.
class Vocabulary {
 public:
  virtual ~Vocabulary() = default;
  // The bytes that a generated token adds to the text; empty for control tokens. They may end
  // inside a UTF-8 character.
  virtual std::string TokenBytes(int32_t token_id) const = 0;
  // End of sequence or end of turn.
  virtual bool EndsGeneration(int32_t token_id) const = 0;
};

}  // namespace rempart::worker
