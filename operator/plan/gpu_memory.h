// SPDX-License-Identifier: Apache-2.0
// Whether a rank fits a node's GPUs, before a pod is there. What a rank takes is known once a
// worker has read the model's file: it tells before it takes any. What GPUs have, the labels of
// NVIDIA's feature discovery say. Where either is not known nothing is refused, and the worker
// finds out; so of stages, which do not take the same, and of which only the first one tells. Pure.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "operator/plan/plan.h"

namespace rempart::op {

struct RankNeed {
  int64_t mib = 0;
  std::string words;  // "a rank takes at least 45056 MiB: 40000 for weights..."
};

// Of the spec, from what is known of its source. Of other parallelism than what was known only the
// weights count, and a tenth less than even shares; of other settings of the engine neither
// workspaces nor the KV cache: what is refused cannot fit.
std::optional<RankNeed> NeedOfRank(const ModelStatus& known,
                                   const serving::v1alpha1::ModelSpec& spec);

// Those whose label says that a GPU has less, and how much it has.
std::map<std::string, int64_t> SmallNodes(const std::vector<NodeObservation>& nodes,
                                          const serving::v1alpha1::ModelSpec& spec,
                                          const RankNeed& need);

// "GPUs of node-a have 24576 MiB, and a rank takes..."; empty where none are too small.
std::string SmallNodesInWords(const GroupPlan& group);

// What the workers say of the source that the spec names; else what was known of it before.
void FillRankMemory(const Observed& observed, Plan& plan);

}  // namespace rempart::op
