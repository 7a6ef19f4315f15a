// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/gpu_memory.h"

#include <algorithm>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::ModelSpec;
using serving::v1alpha1::RankMemoryStatus;

constexpr size_t kMaxNodesInWords = 4;
// Of the weights that another number of ranks would hold each: shares are not quite even, and KV
// heads that some ranks hold twice are no more of the model.
constexpr int64_t kSurePercent = 90;

int32_t TensorOf(const ModelSpec& spec) { return std::max(spec.parallelism().tensor(), 1); }

// The settings that workspaces and the KV cache follow from.
std::string EngineInWords(const ModelSpec& spec) {
  const auto& engine = spec.engine();
  return absl::StrCat(
      "contextLength ", engine.context_length(), ", maxSequences ", engine.max_sequences(),
      ", kvCacheType ", engine.has_kv_cache_type() ? engine.kv_cache_type() : "auto",
      ", kvCacheMib ", engine.kv_cache_mib(),
      engine.has_max_step_tokens() ? absl::StrCat(", maxStepTokens ", engine.max_step_tokens())
                                   : "");
}

}  // namespace

std::optional<RankNeed> NeedOfRank(const ModelStatus& known, const ModelSpec& spec) {
  const RankMemoryStatus& of = known.rank_memory();
  // Claims say themselves which GPUs they may be met with.
  if (spec.device() != "gpu" || !spec.resources().claims().empty()) return std::nullopt;
  if (spec.parallelism().pipeline() > 1) return std::nullopt;
  if (of.weights_mib() == 0 || of.source() != spec.source().uri()) return std::nullopt;
  RankNeed need;
  const bool same_tensor = of.tensor() == TensorOf(spec);
  int64_t weights = of.weights_mib();
  if (!same_tensor) weights = weights * of.tensor() / TensorOf(spec) * kSurePercent / 100;
  need.mib = weights + of.reserve_mib();
  need.words = absl::StrCat(weights, " for weights");
  if (same_tensor && of.engine() == EngineInWords(spec)) {
    need.mib += of.workspace_mib() + of.kv_cache_mib();
    absl::StrAppend(&need.words, ", ", of.workspace_mib(), " for workspaces, ", of.kv_cache_mib(),
                    " for the KV cache");
  }
  need.words = absl::StrCat("a rank takes at least ", need.mib, " MiB: ", need.words, " and ",
                            of.reserve_mib(), " in reserve");
  return need;
}

std::map<std::string, int64_t> SmallNodes(const std::vector<NodeObservation>& nodes,
                                          const ModelSpec& spec, const RankNeed& need) {
  // nvidia.com/gpu.memory; of a slice, nvidia.com/mig-3g.40gb.memory.
  const std::string label = GpuResource(spec) + ".memory";
  std::map<std::string, int64_t> small;
  for (const NodeObservation& node : nodes) {
    const auto told = node.labels.find(label);
    int64_t mib = 0;
    if (told == node.labels.end() || !absl::SimpleAtoi(told->second, &mib)) continue;
    if (mib > 0 && mib < need.mib) small[node.name] = mib;
  }
  return small;
}

std::string SmallNodesInWords(const GroupPlan& group) {
  if (group.small_nodes.empty()) return "";
  std::vector<std::string> words;
  for (const auto& [node, mib] : group.small_nodes) {
    if (words.size() == kMaxNodesInWords) {
      words.push_back(absl::StrCat("and of ", group.small_nodes.size() - words.size(), " more"));
      break;
    }
    words.push_back(absl::StrCat("of ", node, " ", mib, " MiB"));
  }
  return absl::StrCat("GPUs have too little memory, ", absl::StrJoin(words, ", "), ": ",
                      group.rank_need,
                      ". Raise spec.parallelism.tensor, lower spec.engine.contextLength, choose a "
                      "smaller format, or add nodes with larger GPUs");
}

void FillRankMemory(const Observed& observed, Plan& plan) {
  const ModelSpec& spec = observed.model.spec();
  if (spec.device() != "gpu") return;
  const RankMemoryStatus& before = observed.model.status().rank_memory();
  if (before.source() == spec.source().uri()) *plan.status.mutable_rank_memory() = before;
  for (const GroupPlan& group : plan.groups) {
    for (const GroupObservation& seen : observed.groups) {
      const RankMemoryObservation& told = seen.progress.rank_memory;
      if (seen.index != group.index || told.weights_mib == 0) continue;
      // Of another source or other settings, perhaps.
      if (seen.progress.config_hash != group.config_hash) continue;
      if (group.spec.parallelism().pipeline() > 1) continue;
      if (group.spec.source().uri() != spec.source().uri()) continue;
      RankMemoryStatus& memory = *plan.status.mutable_rank_memory();
      memory.set_weights_mib(told.weights_mib);
      memory.set_workspace_mib(told.workspace_mib);
      memory.set_kv_cache_mib(told.kv_cache_mib);
      memory.set_reserve_mib(told.reserve_mib);
      memory.set_source(group.spec.source().uri());
      memory.set_tensor(TensorOf(group.spec));
      memory.set_engine(EngineInWords(group.spec));
    }
  }
}

}  // namespace rempart::op
