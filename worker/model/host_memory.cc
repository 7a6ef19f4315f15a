// SPDX-License-Identifier: Apache-2.0
#include "worker/model/host_memory.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;

// Rounded up, so that what is printed adds up to enough.
int64_t Mib(int64_t bytes) { return (bytes + kMiB - 1) / kMiB; }

absl::Status DoesNotFit(const HostMemoryNeeds& needs, int64_t kv_bytes, const MemoryUse& use) {
  const int64_t parts[] = {Mib(needs.weight_bytes), Mib(needs.repacked_bytes), Mib(kv_bytes),
                           Mib(needs.workspace_bytes), Mib(kProcessBytes)};
  int64_t all = 0;
  for (const int64_t part : parts) all += part;
  const std::string repacked =
      needs.repacked_bytes > 0 ? absl::StrCat(" + weights repacked ", parts[1], " MiB") : "";
  return absl::ResourceExhaustedError(
      absl::StrCat("not enough memory: weights ", parts[0], " MiB", repacked, " + KV cache ",
                   parts[2], " MiB for ", needs.context_length, " tokens + workspace ", parts[3],
                   " MiB + the process itself ", parts[4], " MiB = ", all, " MiB, more than the ",
                   use.left_bytes() / kMiB, " MiB that are left of ", use.limit_bytes / kMiB,
                   " MiB (", use.limit_of, "): give the pod ", all - use.left_bytes() / kMiB,
                   " MiB more (resources.limits.memory), or lower engine.contextLength",
                   needs.kv_bytes > 0 ? " and engine.kvCacheMib" : "", ", or engine.maxSequences"));
}

}  // namespace

int64_t WorkspaceBytes(const ModelConfig& config, const TransformerOptions& options,
                       const RankPosition& of) {
  const Partition partition = MakePartition(config, of);
  const int64_t heads = partition.heads.count() * config.head_dim;
  const int64_t keys = partition.kv_heads.count() * config.head_dim;
  const int64_t ffn = partition.Own(partition.ffn).count();
  const int64_t widest = std::max({config.hidden, config.heads * config.head_dim, config.ffn});
  int64_t angles = 0;
  for (const RopeSpec& rope : config.ropes) {
    angles += static_cast<int64_t>(rope.inverse_frequency.size());
  }
  // residual, normed and branch; queries, keys and values; attended; gate and up; angles.
  const int64_t floats =
      options.max_step_tokens * (3 * config.hidden + 2 * heads + 2 * keys + 2 * ffn + 2 * angles) +
      options.max_step_logits * (config.hidden + config.vocabulary);
  const int64_t groups = (widest + kernels::kActivationGroup - 1) / kernels::kActivationGroup;
  const int64_t rows = std::max(options.max_step_tokens, options.max_step_logits);
  // In blocks of int8, and rounded to BF16: a file may have matrices that read the one or the
  // other.
  return floats * 4 + rows * (groups * static_cast<int64_t>(sizeof(kernels::ActivationBlock)) +
                              2 * kernels::RoundedStride(widest));
}

absl::StatusOr<int64_t> PlanKvBlocks(const HostMemoryNeeds& needs, const MemoryUse& use) {
  const int64_t per_sequence =
      (needs.context_length + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const int64_t least = per_sequence * needs.kv_block_bytes;
  const int64_t free = use.left_bytes();
  const int64_t left =
      free - needs.weight_bytes - needs.repacked_bytes - needs.workspace_bytes - kProcessBytes;
  int64_t wanted = needs.kv_bytes;
  if (wanted == 0) {
    wanted = std::min(needs.max_sequences * least, std::max(least, free / 2));
    wanted = std::max(least, std::min(wanted, left));
  }
  if (wanted < least) {
    return absl::FailedPreconditionError(absl::StrCat(
        "engine.kvCacheMib is ", wanted / kMiB, ", but one sequence of ", needs.context_length,
        " tokens needs ", Mib(least), " MiB: set at least that, or lower engine.contextLength"));
  }
  if (wanted > left) return DoesNotFit(needs, wanted, use);
  return wanted / needs.kv_block_bytes;
}

}  // namespace rempart::worker
