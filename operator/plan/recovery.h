// SPDX-License-Identifier: Apache-2.0
// What is done about members that broke: counted, named, replaced, and given up when nothing helps.
// Pure; what it must remember stands in the Model's status.
//
//   a member breaks ──> its group's failures + 1, its node suspect ──> replaced, with a longer
//   pause
//                       each time; on another node, where there is one
//   its GPU is broken ──> the same, and the pod is replaced, for its process would get that GPU
//   again
//   a node twice within an hour ──> excluded until the annotation rempart.dev/retry changes
//   more than kFailureBudget failures in a row ──> the operator stops replacing and says how to go
//   on
//
// Why a pod may be deleted without the word of its node, although two processes of one name may
// then live for a while: members meet only in an epoch, with its key; an epoch begins with one
// process per place, and whoever comes from an older one is refused by all
// (operator/group/coordinate.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "operator/plan/plan.h"

namespace rempart::op {

// Failures of one group, each within kFailureWindowSeconds of the last, before it is left alone.
inline constexpr int32_t kFailureBudget = 5;
inline constexpr int32_t kFailureWindowSeconds = 600;
inline constexpr int32_t kSuspectsToExclude = 2;
inline constexpr int32_t kSuspicionSeconds = 3600;

struct GroupMemory {
  int32_t failures = 0;
  std::string last_failure_time;
  std::string last_failure;
  int32_t counted_epoch = 0;
  int32_t restarts = 0;
  // The last that each pod, by name, told of; also after the pod was replaced, for as long as its
  // words are still heard.
  std::map<std::string, serving::v1alpha1::GpuFaultStatus> gpu_faults = {};

  bool exhausted() const { return failures > kFailureBudget; }
};
using Memory = std::map<int32_t, GroupMemory>;  // by group index

// Counts what has broken since the last status; fills status.suspect_nodes and status.retry, and
// forgets both and the failures when a person says so.
Memory Remember(const Observed& observed, Plan& plan);

// Adds the deletions of pods that are lost, stuck, have a broken GPU, or must leave their node.
void ReplaceLost(const Observed& observed, const Memory& memory, Plan& plan);

// Adds the releases of gated pods, and why others stay gated.
void PlacePods(const Observed& observed, Plan& plan);

// A failure more of the group, and why.
void CountFailure(const Observed& observed, const std::string& why, GroupMemory& memory);

// One suspicion more of the node; excludes it when that is one too many.
void RaiseSuspicion(const Observed& observed, const std::string& node, const std::string& why,
                    Plan& plan);

// Of the pod that is there, by its name: what its member said since the pod exists; null: nothing.
const MemberObservation* FindMember(const GroupObservation& group, const PodObservation& pod);

// Nodes in words, for messages about exclusion; empty when none is excluded.
std::string ExcludedInWords(const ModelStatus& status);

}  // namespace rempart::op
