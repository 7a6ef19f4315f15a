// SPDX-License-Identifier: Apache-2.0
// One step's work for the model: slices of several sequences, prefill chunks and decodes mixed.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "worker/model/sampling.h"

namespace rempart::worker {

// The next tokens of one sequence. The spans belong to the caller and live until Forward returns.
struct SequenceSlice {
  absl::Span<const int32_t> token_ids;    // [num_tokens], at least one
  int32_t first_position = 0;             // of token_ids[0] in its sequence
  absl::Span<const int32_t> block_table;  // KV block of position p is block_table[p / block_size]
  bool wants_logits = false;              // of the slice's last token
  // With wants_logits: a model that can may draw the next token itself, instead of giving logits.
  const SliceSampling* sampling = nullptr;
  // Its one token, of which token_ids holds the place alone, is the one that a model which draws
  // has drawn in the step before for this one of the slices that wanted logits; -1: the host knows
  // it.
  int32_t follows = -1;
};

// One KV block copied to another, in all layers: a fork gets its own copy of a partly filled block
// before it writes there.
struct BlockCopy {
  int32_t source = 0;
  int32_t destination = 0;
  bool operator==(const BlockCopy&) const = default;
};

struct StepBatch {
  std::vector<BlockCopy> copies;  // done in this order, before the slices
  std::vector<SequenceSlice> slices;
  // Tokens are computed in runs of so many, so that the stages of a pipeline work at once; 0: all
  // together. Results are the same.
  int32_t micro_batch_tokens = 0;
};

// The batch's slices in runs of micro_batch_tokens tokens, without copies. A slice may be cut: its
// last part is the one that wants logits. Spans into `batch`.
std::vector<StepBatch> MicroBatches(const StepBatch& batch);

// What whoever draws looks at first: tokens outside the vocabulary, a mask of another size.
absl::Status CheckSampling(const SliceSampling& sampling, int64_t vocabulary);

}  // namespace rempart::worker
