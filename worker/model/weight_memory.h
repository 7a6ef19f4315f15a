// SPDX-License-Identifier: Apache-2.0
// What the weights of a process take of memory on a CPU, known before it is taken.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/model/weights.h"

namespace rempart::worker {

// Each byte that a step reads counts once, whether it is a copy or a page of a file: the system
// could take the latter back, but the next step would read it from disk again. What copies are made
// from counts only where a step reads it too.
struct WeightMemory {
  int64_t in_file = 0;   // read where they lie in the file, and small vectors
  int64_t expanded = 0;  // of quantised folders
  int64_t repacked = 0;
  bool repacked_is_kept = false;  // all of it: pages of a repack cache
  int64_t scratch = 0;            // of CopyWeights, which frees it
  int64_t sum() const { return in_file + expanded + repacked; }
};

// Of all ranks of a process, which share the pages of a file, and copy one after the other. Between
// FindRepacked and CopyWeights.
WeightMemory MemoryOf(const kernels::Ops& ops, const PackOptions& options,
                      absl::Span<Weights* const> ranks);

}  // namespace rempart::worker
