// SPDX-License-Identifier: Apache-2.0
// How the memory of this machine, or of the container's limit, is shared out when a model computes
// on the CPU: weights, workspaces, and the KV cache. Arithmetic alone, before anything is
// allocated; a start that does not fit is refused with the numbers.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/device/memory_limit.h"
#include "worker/model/transformer.h"
#include "worker/model/weight_memory.h"

namespace rempart::worker {

// Of all ranks of this process.
struct HostMemoryNeeds {
  WeightMemory weights;
  int64_t vocabulary = 0;  // tokens
  int64_t workspace_bytes = 0;
  int64_t kv_block_bytes = 0;
  int64_t context_length = 0;  // tokens of one sequence, at most
  int64_t max_sequences = 0;
  int64_t kv_bytes = 0;  // 0: enough for all sequences, or what fits in half of what is left
};

// Of code, stacks, the tokenizer and what a request needs beside the model; and so much that memory
// is not short (MemoryWatch) when all else is in use.
inline constexpr int64_t kProcessBytes = int64_t{64} << 20;
// A tokenizer of more tokens than these takes so much more for each.
inline constexpr int64_t kTokensOfProcess = int64_t{64} << 10;
inline constexpr int64_t kBytesPerToken = 400;
// The system keeps a table entry of 8 bytes for each page of 4 KiB, and charges the process for it.
inline constexpr int64_t kBytesPerTableByte = 512;

// What a Transformer of these options allocates beside the KV cache, and the engine for its logits.
int64_t WorkspaceBytes(const ModelConfig& config, const TransformerOptions& options,
                       const RankPosition& of = {});

// How many KV blocks there are, which an int32_t holds; never fewer than one sequence of full
// length needs.
// ResourceExhausted, with each part, the limit and what to change, when they do not fit into what
// is left; FailedPrecondition when kv_bytes are too few for one sequence.
absl::StatusOr<int64_t> PlanKvBlocks(const HostMemoryNeeds& needs, const MemoryUse& use);

}  // namespace rempart::worker
