// SPDX-License-Identifier: Apache-2.0
#include "worker/model/device_memory.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/device_ops.h"
#include "worker/model/sampling.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kMinSplitTokens = 128;
constexpr int64_t kMaxSplits = 64;
constexpr int64_t kListed = 1024;     // of a row, on the average
constexpr int64_t kMaxBiases = 1024;  // of one row that is alone

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Over all layers of the rank's stage, of its share.
int64_t KvBlockBytes(const ModelConfig& config, const DeviceModelOptions& options,
                     const RankPosition& of) {
  const Partition partition = MakePartition(config, of, MatrixCut::kPairs);
  return kernels::DeviceKvBlockBytes(options.kv_is_fp8, partition.kv_heads.count(),
                                     config.head_dim) *
         partition.layers.count();
}

}  // namespace

int64_t GraphSize(int64_t slices) {
  int64_t size = 1;
  while (size < slices) size *= 2;
  return size;
}

DeviceWorkspace LayOutWorkspace(const ModelConfig& config, const DeviceModelOptions& options,
                                const RankPosition& of) {
  const Partition partition = MakePartition(config, of, MatrixCut::kPairs);
  const int64_t heads = partition.heads.count();
  const int64_t ffn = partition.Own(partition.ffn).count();
  DeviceWorkspace space;
  space.vocabulary = partition.vocabulary[1];
  space.slices = GraphSize(options.max_sequences);
  space.tokens = std::max(options.max_step_tokens, space.slices);
  space.product_rows = CeilDivide(space.tokens, kernels::kProductRows) * kernels::kProductRows;
  space.table_stride = CeilDivide(options.context_length, kernels::kKvBlockTokens);
  // Of a fixed length, so that a token's result does not depend on others.
  space.split_tokens =
      std::max(kMinSplitTokens,
               CeilDivide(CeilDivide(options.context_length, kMaxSplits), kernels::kKvBlockTokens) *
                   kernels::kKvBlockTokens);
  space.max_splits = CeilDivide(options.context_length, space.split_tokens);
  space.max_tiles = CeilDivide(space.tokens, kernels::kPrefillTile) + space.slices;
  const auto take = [&](int64_t& offset, int64_t bytes) {
    offset = space.bytes;
    space.bytes += CeilDivide(bytes, 256) * 256;
  };
  const int64_t queries = heads * config.head_dim;
  space.attended_stride = partition.attended_blocks.count();
  space.attended_lead = partition.Own(partition.attended).begin - partition.attended_blocks.begin;
  const int64_t qkv = queries + 2 * partition.kv_heads.count() * config.head_dim;
  take(space.residual, space.tokens * config.hidden * 4);
  take(space.branch, space.product_rows * config.hidden * 2);
  if (of.is_last_stage()) {
    take(space.logits, space.slices * space.vocabulary * 4);
    space.all_logits = space.logits;
    if (of.size > 1) take(space.all_logits, of.size * space.slices * space.vocabulary * 4);
  }
  // With log-probabilities.
  const int64_t sampled = 2 * 4 * space.slices;
  const bool hands_on = of.size > 1 && of.stages == 1;
  if (hands_on) {
    take(space.sampled, sampled);
    take(space.all_sampled, of.size * 4 * space.slices);
  }
  if (of.size > 1) space.exchange_bytes = space.bytes;
  take(space.normed, space.tokens * config.hidden * 2);
  take(space.qkv, space.product_rows * qkv * 2);
  take(space.attended, space.tokens * space.attended_stride * 2);
  take(space.gate_up, space.product_rows * 2 * ffn * 2);
  take(space.activated, space.tokens * ffn * 2);
  if (of.is_last_stage()) take(space.last, space.slices * config.hidden * 2);
  take(space.partial,
       4 * kernels::DecodePartialFloats(space.slices, heads, config.head_dim, space.max_splits));
  space.listed = std::max(space.slices * kListed,
                          std::min(options.context_length, config.vocabulary) + kMaxBiases);
  take(space.lists, 3 * 4 * space.listed);  // ids, values, originals
  space.mask_words = MaskWords(config.vocabulary);
  take(space.masks, 4 * space.slices * space.mask_words);
  if (!hands_on) {
    take(space.sampled, sampled);
    space.all_sampled = space.sampled;
  }
  // Sampling; ids, positions, slice of token; starts, contexts, tables, rows of last tokens; tiles.
  take(space.inputs, static_cast<int64_t>(sizeof(kernels::DeviceSampling)) * space.slices +
                         4 * (3 * space.tokens + space.slices * (4 + space.table_stride) + 1 +
                              2 * space.max_tiles));
  return space;
}

DeviceMemoryNeeds NeedsOfRank(const ModelConfig& config, int64_t weights_bytes,
                              const DeviceModelOptions& options, const RankPosition& of) {
  const int64_t least = CeilDivide(options.context_length, kernels::kKvBlockTokens) *
                        KvBlockBytes(config, options, of);
  return {weights_bytes, LayOutWorkspace(config, options, of).bytes,
          std::max(least, options.kv_bytes), options.reserve_bytes};
}

absl::StatusOr<DeviceMemoryPlan> PlanDeviceMemory(const ModelConfig& config, int64_t weights_bytes,
                                                  const DeviceModelOptions& options,
                                                  int64_t free_bytes, const RankPosition& of) {
  DeviceMemoryPlan plan;
  plan.weights_bytes = weights_bytes;
  plan.workspace = LayOutWorkspace(config, options, of);
  plan.kv_block_bytes = KvBlockBytes(config, options, of);
  const int64_t left = free_bytes - weights_bytes - plan.workspace.bytes - options.reserve_bytes;
  const int64_t least =
      CeilDivide(options.context_length, kernels::kKvBlockTokens) * plan.kv_block_bytes;
  const int64_t wanted = options.kv_bytes > 0 ? options.kv_bytes : std::max<int64_t>(left, 0);
  const auto mib = [](int64_t bytes) { return CeilDivide(bytes, kMiB); };
  if (least > left || wanted > left) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the GPU has ", free_bytes / kMiB, " MiB free, and needs ", mib(weights_bytes),
                     " for weights, ", mib(plan.workspace.bytes), " for workspaces, ",
                     mib(options.reserve_bytes), " in reserve and ",
                     mib(std::max(least, options.kv_bytes)), " for the KV cache",
                     options.kv_bytes > 0
                         ? ""
                         : absl::StrCat(" of one sequence of ", options.context_length, " tokens"),
                     ": lower engine.contextLength, choose a smaller format, or use more GPUs"));
  }
  if (wanted < least) {
    return absl::FailedPreconditionError(
        absl::StrCat("engine.kvCacheMib gives ", wanted / kMiB, " MiB, but one sequence of ",
                     options.context_length, " tokens needs ", mib(least),
                     " MiB: raise it, or lower "
                     "engine.contextLength"));
  }
  plan.kv_blocks = wanted / plan.kv_block_bytes;
  return plan;
}

}  // namespace rempart::worker
