// SPDX-License-Identifier: Apache-2.0
// What restricts the tokens of a sequence while they are drawn, such as a grammar: a state that
// says which tokens may come next, and moves on with the token that came. The engine knows no more
// of it; docs/adr/0042-constraints-on-tokens.md says how it keeps the state right.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace rempart::worker {

// Of one thread at a time: the engine's, once the request is submitted. An error ends the sequence,
// as a failure with its message, and nothing else; InvalidArgument is the request's fault. Nothing
// is asked of a constraint after its error.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // One in the same state, which from here on goes its own way.
  virtual absl::StatusOr<std::unique_ptr<TokenConstraint>> Copy() const = 0;
  // Sets the bits of all tokens that may come next, SliceSampling::mask: bit id % 32 of word id /
  // 32 of `mask` [MaskWords(vocabulary_size of the model)], which is all zero; the model's
  // vocabulary may be larger than the tokenizer's. A token that ends the generation is one of
  // these: where the answer may end here, its bit is set. A mask that allows nothing fails the
  // sequence. Not asked once it is complete.
  virtual absl::Status FillMask(absl::Span<uint32_t> mask) = 0;
  // The token came: it was drawn by the newest mask, or it was generated before
  // (SequenceRequest::resume_tokens). Each once, in their order, but for the one that ends the
  // sequence as the model's end, which is not handed over.
  virtual absl::Status Accept(int32_t token_id) = 0;
  // Nothing may follow: the sequence ends here, with kStop, and no end token is drawn. Who wants
  // one to be drawn is not complete yet and allows that one alone.
  virtual bool IsComplete() const = 0;
};

}  // namespace rempart::worker
