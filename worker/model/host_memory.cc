// SPDX-License-Identifier: Apache-2.0
#include "worker/model/host_memory.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;

// Rounded up, so that what is printed adds up to enough.
int64_t Mib(int64_t bytes) { return (bytes + kMiB - 1) / kMiB; }

// Of what a file and settings say, which may be more than a number holds: then as good as endless,
// with room to add to it.
constexpr int64_t kEndless = int64_t{1} << 61;
int64_t Times(int64_t a, int64_t b) { return a > kEndless / b ? kEndless : a * b; }

int64_t TableBytes(int64_t bytes) { return (bytes + kBytesPerTableByte - 1) / kBytesPerTableByte; }

int64_t ProcessBytes(const HostMemoryNeeds& needs) {
  return kProcessBytes + std::max<int64_t>(0, needs.vocabulary - kTokensOfProcess) * kBytesPerToken;
}

// One term of the sum.
struct Part {
  std::string text;  // after the figure is known
  int64_t mib = 0;
};

// `while_copying`: so early that neither cache nor workspace are there yet.
std::vector<Part> PartsOf(const HostMemoryNeeds& needs, int64_t kv_bytes, bool while_copying) {
  const WeightMemory& weights = needs.weights;
  std::vector<Part> parts;
  int64_t all = 0;
  const auto add = [&](absl::string_view name, int64_t bytes, absl::string_view after = "") {
    if (bytes == 0) return;
    parts.push_back({absl::StrCat(name, " ", Mib(bytes), " MiB", after), Mib(bytes)});
    all += bytes;
  };
  add("weights repacked", weights.repacked,
      weights.repacked_is_kept ? " (kept from an earlier start)" : "");
  add("weights expanded", weights.expanded);
  add("weights read from the file", weights.in_file);
  if (while_copying) {
    add("the largest matrix while it is repacked", weights.scratch);
  } else {
    add("KV cache", kv_bytes, absl::StrCat(" for ", needs.context_length, " tokens"));
    add("workspace", needs.workspace_bytes);
  }
  add("the process itself", ProcessBytes(needs) + TableBytes(all));
  return parts;
}

// What to ask less for; `most_kv_bytes` fit, where that is enough for one sequence.
std::string Smaller(const HostMemoryNeeds& needs, int64_t most_kv_bytes, bool while_copying) {
  if (while_copying) return "";
  if (needs.kv_bytes > 0 && most_kv_bytes > 0) {
    return absl::StrCat(", or lower engine.kvCacheMib to at most ", most_kv_bytes / kMiB);
  }
  return absl::StrCat(", or lower engine.contextLength",
                      needs.kv_bytes > 0 ? " and engine.kvCacheMib" : "",
                      ", or engine.maxSequences");
}

absl::Status DoesNotFit(const HostMemoryNeeds& needs, int64_t kv_bytes, int64_t most_kv_bytes,
                        const MemoryUse& use) {
  const bool while_copying = needs.weights.scratch > kv_bytes + needs.workspace_bytes;
  const std::vector<Part> parts = PartsOf(needs, kv_bytes, while_copying);
  int64_t all = 0;
  for (const Part& part : parts) all += part.mib;
  const std::string sum = absl::StrJoin(
      parts, " + ", [](std::string* out, const Part& part) { absl::StrAppend(out, part.text); });
  const int64_t missing = all - use.left_bytes() / kMiB;
  const std::string more =
      use.is_of_machine()
          ? absl::StrCat("this machine has ", missing, " MiB too little: end other processes")
          : absl::StrCat("give the pod ", missing, " MiB more (resources.limits.memory)");
  return absl::ResourceExhaustedError(absl::StrCat(
      "not enough memory: ", sum, " = ", all, " MiB, more than the ", use.left_bytes() / kMiB,
      " MiB that are left of ", use.limit_bytes / kMiB, " MiB (", use.limit_of, "): ", more,
      Smaller(needs, most_kv_bytes, while_copying)));
}

}  // namespace

int64_t WorkspaceBytes(const ModelConfig& config, const TransformerOptions& options,
                       const RankPosition& of) {
  const Partition partition = MakePartition(config, of);
  const int64_t all_heads = config.heads * config.head_dim;
  const int64_t heads = partition.heads.count() * config.head_dim;
  const int64_t keys = partition.kv_heads.count() * config.head_dim;
  const int64_t ffn = partition.Own(partition.ffn).count();
  const int64_t widest = std::max({config.hidden, all_heads, config.ffn});
  int64_t angles = 0;
  for (const RopeSpec& rope : config.ropes) {
    angles += static_cast<int64_t>(rope.inverse_frequency.size());
  }
  // Of ranks that share a stage: what the others have of an input that is not sent in blocks.
  const int64_t wide = of.size > 1 ? std::max(all_heads, config.ffn) : 0;
  // residual, normed and branch; queries, keys and values; attended; gate and up; angles.
  const int64_t floats = options.max_step_tokens * (3 * config.hidden + heads + 2 * keys +
                                                    all_heads + 2 * ffn + 2 * angles + wide) +
                         options.max_step_logits * (config.hidden + config.vocabulary);
  const int64_t groups = (widest + kernels::kActivationGroup - 1) / kernels::kActivationGroup;
  const int64_t rows = std::max(options.max_step_tokens, options.max_step_logits);
  // Ids and positions; in blocks of int8, and rounded to BF16: a file may have matrices that read
  // the one or the other.
  return floats * 4 + options.max_step_tokens * 8 +
         rows * (groups * static_cast<int64_t>(sizeof(kernels::ActivationBlock)) +
                 2 * kernels::RoundedStride(widest));
}

absl::StatusOr<int64_t> PlanKvBlocks(const HostMemoryNeeds& needs, const MemoryUse& use) {
  const int64_t per_sequence =
      (needs.context_length + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const int64_t least = Times(per_sequence, needs.kv_block_bytes);
  const int64_t free = use.left_bytes();
  const int64_t weights = needs.weights.sum();
  const int64_t room = free - ProcessBytes(needs);
  // Of what is left for the cache, its own page tables are the 513th part.
  const int64_t others = weights + needs.workspace_bytes;
  const int64_t left =
      (room - others - TableBytes(others)) / (kBytesPerTableByte + 1) * kBytesPerTableByte;
  const int64_t copying = weights + needs.weights.scratch;
  int64_t wanted = needs.kv_bytes;
  if (wanted == 0) {
    wanted = std::min(Times(needs.max_sequences, least), std::max(least, free / 2));
    wanted = std::max(least, std::min(wanted, left));
  }
  if (wanted < least) {
    return absl::FailedPreconditionError(absl::StrCat(
        "engine.kvCacheMib is ", wanted / kMiB, ", but one sequence of ", needs.context_length,
        " tokens needs ", Mib(least), " MiB: set at least that, or lower engine.contextLength"));
  }
  if (wanted > left || copying + TableBytes(copying) > room) {
    return DoesNotFit(needs, wanted, left / kMiB * kMiB >= least ? left : 0, use);
  }
  return std::min<int64_t>(wanted / needs.kv_block_bytes, std::numeric_limits<int32_t>::max());
}

}  // namespace rempart::worker
