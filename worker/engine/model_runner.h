// SPDX-License-Identifier: Apache-2.0
// What the engine needs of a model: one forward pass over a mixed batch, and the meaning of a token
// id. The real ones adapt worker/model and worker/text; the test's compute something small.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/model/step_batch.h"

namespace rempart::worker {

// A model that computes beside the host, on a device with a queue: the engine may begin a step
// while another one runs, before it has seen the tokens of that one.
class StepPipeline {
 public:
  virtual ~StepPipeline() = default;
  // Begins a step behind the one that runs, where there is one, and reads the batch, which may go
  // then. Returns whether the model itself draws all that the batch wants: only then may a step be
  // begun behind it, whose slices may follow its tokens (SequenceSlice::follows). After an error
  // nothing has begun.
  virtual absl::StatusOr<bool> Start(const StepBatch& batch) = 0;
  // Waits for the older of at most two steps that run; as ModelRunner::Forward. `logits` may be
  // empty when it has drawn all.
  virtual absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) = 0;
};

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual int32_t vocabulary_size() const = 0;
  // Computes every slice; row i of `logits` [num_wanting, vocabulary_size] belongs to the i-th
  // slice that wants them. Of a slice with `sampling` a model may instead draw the token, as
  // worker/engine/sampler.h would: then it says so in `drawn` [num_wanting], and the row of logits
  // stays as it is. `drawn` may be empty: nothing is to be drawn. Engine thread only. An error
  // fails the batch's requests, not the process.
  virtual absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                               absl::Span<DrawnToken> drawn) = 0;
  // Null: it has none. The same one always; Forward is not called while a step of it runs.
  virtual StepPipeline* pipeline() { return nullptr; }
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
