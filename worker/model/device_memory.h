// SPDX-License-Identifier: Apache-2.0
// How the memory of a device is shared out: weights, workspaces, and the KV cache, which takes what
// is left. Arithmetic alone, before anything is allocated; a start that does not fit is refused
// with the numbers.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/model/model_config.h"
#include "worker/model/partition.h"

namespace rempart::worker {

struct DeviceModelOptions {
  int64_t context_length = 8192;   // of one sequence, at most
  int64_t max_step_tokens = 2048;  // of all slices of a step
  int64_t max_sequences = 256;     // slices of a step
  bool kv_is_fp8 = false;
  // F32, F16 and BF16 matrices of the layers become FP8 with one scale a row while they load.
  bool weights_to_fp8 = false;
  int64_t kv_bytes = 0;  // 0: all that is left
  int load_threads = 4;  // that read weights at once
  // Of the device's memory, for its context, its libraries' workspaces and graphs.
  int64_t reserve_bytes = int64_t{1} << 30;
};

// Where each array lies in the one workspace allocation; bytes from its beginning.
struct DeviceWorkspace {
  int64_t vocabulary = 0;  // of this rank, or of the rank that has most: columns of its logits
  int64_t tokens = 0;      // rows of the arrays below: max_step_tokens, or the largest graph
  // Rows of the arrays that products go to: `tokens`, rounded up to what
  // DeviceMatmulArgs::y_rows is asked for.
  int64_t product_rows = 0;
  int64_t slices = 0;  // rows of logits: max_sequences rounded up to a size of graphs
  int64_t table_stride = 0;
  int64_t split_tokens = 0;  // of decode attention
  int64_t max_splits = 0;
  int64_t max_tiles = 0;  // of prefill attention
  int64_t attended_stride =
      0;                      // of a row of `attended`: this rank's columns, and zeros around them
  int64_t attended_lead = 0;  // zeros before them
  // Of all rows that are drawn in a step: tokens that have a bias, or have occurred where there are
  // penalties. A row for which there is no room is drawn on the host.
  int64_t listed = 0;
  int64_t mask_words = 0;  // of each slice's mask of tokens
  // Offsets.
  int64_t residual = 0, normed = 0, qkv = 0, attended = 0, gate_up = 0, activated = 0, branch = 0,
          last = 0, logits = 0, partial = 0, lists = 0, masks = 0, sampled = 0, inputs = 0;
  // Of one rank of several that share a stage: the logits of all, [ranks, rows, vocabulary]. Else
  // those above. Both are of the last stage alone, and `last` is.
  int64_t all_logits = 0;
  // Of one rank of several that share the only stage: the tokens of all, [ranks, slices], of which
  // those of rank 0 are drawn. Else `sampled`.
  int64_t all_sampled = 0;
  // Of one rank of several that share a stage: an allocation of its own for what collectives work
  // on, as large and laid out alike on all ranks. The offsets below are in it, the others in the
  // second one.
  int64_t exchange_bytes = 0;
  int64_t bytes = 0;  // of both
};

// Sizes of the decode batches that graphs are made for: powers of two.
int64_t GraphSize(int64_t slices);

// Of a rank of several, which has its share of the layers, the heads, the FFN and the vocabulary.
DeviceWorkspace LayOutWorkspace(const ModelConfig& config, const DeviceModelOptions& options,
                                const RankPosition& of = {});

struct DeviceMemoryPlan {
  int64_t weights_bytes = 0;
  DeviceWorkspace workspace;
  int64_t kv_block_bytes = 0;  // over all layers of the stage
  int64_t kv_blocks = 0;
};

// What a rank takes of its device at least.
struct DeviceMemoryNeeds {
  int64_t weights_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t kv_bytes = 0;  // of one sequence of full length, or what the options say
  int64_t reserve_bytes = 0;

  int64_t sum() const { return weights_bytes + workspace_bytes + kv_bytes + reserve_bytes; }
};
DeviceMemoryNeeds NeedsOfRank(const ModelConfig& config, int64_t weights_bytes,
                              const DeviceModelOptions& options, const RankPosition& of = {});

// `weights_bytes` are those of the rank. ResourceExhausted when one sequence of full length does
// not fit into `free_bytes` beside the rest; its message has the numbers, and what to change.
absl::StatusOr<DeviceMemoryPlan> PlanDeviceMemory(const ModelConfig& config, int64_t weights_bytes,
                                                  const DeviceModelOptions& options,
                                                  int64_t free_bytes, const RankPosition& of = {});

}  // namespace rempart::worker
