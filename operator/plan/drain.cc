// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/drain.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "operator/plan/group_plan.h"
#include "operator/plan/status.h"

namespace rempart::op {
namespace {

std::string DrainingSince(const Model& model, const std::string& group) {
  for (const auto& known : model.status().groups()) {
    if (known.name() == group) return known.draining_since();
  }
  return "";
}

}  // namespace

bool CanServe(const GroupObservation& group) {
  return GroupIsReady(group) || (group.exists && group.progress.phase == WorkerPhase::kDraining);
}

bool IsIdle(const GroupObservation& group) {
  return group.progress.phase == WorkerPhase::kDraining && group.progress.requests == 0;
}

bool HasDrained(const Observed& observed, const GroupObservation& group, const std::string& why,
                Plan& plan) {
  const auto& rollout = observed.model.spec().rollout();
  const int32_t allowed = rollout.has_drain_seconds() ? rollout.drain_seconds() : kDrainSeconds;
  // A leader that has been asked to end drains by itself.
  const bool leader_leaves =
      std::any_of(group.pods.begin(), group.pods.end(),
                  [](const PodObservation& pod) { return pod.index == 0 && pod.deleting; });
  if (allowed == 0 || leader_leaves || !CanServe(group)) return true;
  const std::string name = GroupName(observed.model, group.index);
  std::string since = DrainingSince(observed.model, name);
  if (since.empty()) {
    since = observed.now;
    plan.events.push_back({"Normal", "Draining",
                           absl::StrCat("group ", name, " finishes what it runs, for at most ",
                                        allowed, " s: ", why)});
  }
  const int64_t passed = observed.now_seconds - SecondsOf(since);
  const int64_t left = std::clamp<int64_t>(allowed - passed, 0, allowed);
  // 0 would mean: without a deadline.
  plan.drains[group.index] = {name, since, std::max(static_cast<int32_t>(left), 1)};
  return IsIdle(group) || left == 0;
}

void ReviveOthers(const Observed& observed, Plan& plan) {
  std::set<std::string> deleted;
  for (const PodDeletion& deletion : plan.deletions) deleted.insert(deletion.uid);
  for (const GroupPlan& group : plan.groups) {
    const GroupObservation* seen = FindGroup(observed, group.index);
    if (seen == nullptr || seen->progress.phase != WorkerPhase::kDraining) continue;
    // What has drained and loses a pod has no use for requests before its next epoch.
    const bool is_leaving = std::any_of(
        seen->pods.begin(), seen->pods.end(),
        [&](const PodObservation& pod) { return pod.deleting || deleted.count(pod.uid) > 0; });
    if (!is_leaving && plan.drains.count(group.index) == 0) plan.resumes.push_back(group.name);
  }
}

}  // namespace rempart::op
