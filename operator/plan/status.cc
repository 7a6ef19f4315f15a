// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/status.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "operator/plan/gpu_memory.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/group_plan.h"
#include "operator/plan/rollout.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::Condition;
using serving::v1alpha1::GroupStatus;

constexpr int64_t kMiB = 1 << 20;
// How often a Model that is not complete is looked at though no event comes: while a worker tells
// of its progress, and while none does.
constexpr int32_t kProgressSeconds = 2;
constexpr int32_t kQuietSeconds = 5;

// What stands in the way of a group, and which condition it belongs to.
struct Trouble {
  std::string condition;  // Fits, WeightsAvailable or Ready
  std::string reason;
  std::string message;
};

std::string ConditionOf(const std::string& reason) {
  if (reason == "InsufficientMemory" || reason == "InvalidParallelism" ||
      reason == "DeviceUnavailable") {
    return "Fits";
  }
  if (reason == "WeightsNotFound" || reason == "InvalidModelFile" ||
      reason == "UnsupportedArchitecture") {
    return "WeightsAvailable";
  }
  return "Ready";
}

// Of "exit code 4 (Error): " and the end of a worker's log, the last error alone, without time,
// component and the reason that the exit code tells as well; other words as they are.
std::string LastErrorOf(absl::string_view termination) {
  constexpr absl::string_view kError = "Z ERROR ";
  const size_t error = termination.rfind(kError);
  const size_t exit_ends = termination.find(": ");
  if (error == absl::string_view::npos || exit_ends > error) return std::string(termination);
  absl::string_view words = termination.substr(error + kError.size());
  words = words.substr(0, words.find('\n'));
  const size_t component_ends = words.find(": ");
  if (component_ends != absl::string_view::npos) words.remove_prefix(component_ends + 2);
  const size_t reason = words.rfind(" reason=");
  if (reason != absl::string_view::npos && words.find(' ', reason + 1) == absl::string_view::npos) {
    words = words.substr(0, reason);
  }
  return absl::StrCat(termination.substr(0, exit_ends), ": ", words);
}

std::optional<Trouble> PodTrouble(const PodObservation& pod) {
  if (pod.deleting) return std::nullopt;
  if (!pod.unschedulable.empty()) {
    return Trouble{"Fits", "Unschedulable",
                   absl::StrCat("pod ", pod.name, " finds no node: ", pod.unschedulable)};
  }
  const std::string& reason = pod.waiting_reason;
  if (reason == "ImagePullBackOff" || reason == "ErrImagePull" || reason == "ErrImageNeverPull" ||
      reason == "CreateContainerConfigError" || reason == "CreateContainerError") {
    return Trouble{"Ready", reason, absl::StrCat("pod ", pod.name, ": ", pod.waiting_message)};
  }
  if (reason == "CrashLoopBackOff" && !pod.last_termination.empty()) {
    return Trouble{"Ready", "WorkerExited",
                   absl::StrCat("pod ", pod.name,
                                " ends again and again: ", LastErrorOf(pod.last_termination))};
  }
  return std::nullopt;
}

// The worker's own word goes before what Kubernetes sees from outside.
std::optional<Trouble> GroupTrouble(const GroupObservation& group) {
  if (GroupIsReady(group)) return std::nullopt;
  if (group.progress.phase == WorkerPhase::kFailed) {
    return Trouble{ConditionOf(group.progress.reason), group.progress.reason,
                   group.progress.message};
  }
  for (const PodObservation& pod : group.pods) {
    if (auto trouble = PodTrouble(pod)) return trouble;
  }
  return std::nullopt;
}

class Conditions {
 public:
  Conditions(const Observed& observed, Plan& plan) : observed_(observed), plan_(plan) {}

  // Keeps the transition time while the status stays the same.
  void Set(const std::string& type, const std::string& status, const std::string& reason,
           const std::string& message) {
    Condition& condition = *plan_.status.add_conditions();
    condition.set_type(type);
    condition.set_status(status);
    condition.set_reason(reason);
    condition.set_message(message);
    condition.set_last_transition_time(observed_.now);
    condition.set_observed_generation(observed_.model.metadata().generation());
    const Condition* before = Before(type);
    if (before != nullptr && before->status() == status) {
      condition.set_last_transition_time(before->last_transition_time());
    }
    const bool changed =
        before == nullptr || before->status() != status || before->reason() != reason;
    if (!changed) return;
    const bool proof = type == "Accepted" || type == "WeightsAvailable" || type == "Fits";
    const bool trouble = (proof && status == "False") ||
                         (type == "Degraded" && status == "True" && reason != "RolledBack") ||
                         (type == "Ready" && reason == "WorkerFailed");
    if (trouble) plan_.events.push_back({"Warning", reason, message});
    if (type == "Ready" && status == "True") plan_.events.push_back({"Normal", reason, message});
  }

 private:
  const Condition* Before(const std::string& type) const {
    for (const Condition& condition : observed_.model.status().conditions()) {
      if (condition.type() == type) return &condition;
    }
    return nullptr;
  }

  const Observed& observed_;
  Plan& plan_;
};

std::string HowToRetry(const Model& model) {
  return absl::StrCat("run: kubectl annotate model ", model.metadata().name(), " ",
                      kRetryAnnotation, "=\"$(date)\" --overwrite");
}

// What the scheduler does not say: why it may not use nodes that have GPUs left.
std::string SmallGpusOf(const Plan& plan, int32_t index) {
  for (const GroupPlan& group : plan.groups) {
    if (group.index != index || group.small_nodes.empty()) continue;
    return ". " + SmallNodesInWords(group);
  }
  return "";
}

std::optional<Trouble> FirstTrouble(const Observed& observed, const Memory& memory,
                                    const Plan& plan) {
  if (observed.claim == ClaimState::kMissing) {
    const std::string claim = ClaimOf(observed.model);
    return Trouble{"WeightsAvailable", "ClaimNotFound",
                   absl::StrCat("there is no PersistentVolumeClaim \"", claim, "\" in namespace ",
                                observed.model.metadata().namespace_(),
                                "; create it, or correct spec.source.uri")};
  }
  for (const GroupObservation& group : observed.groups) {
    auto trouble = GroupTrouble(group);
    if (!trouble.has_value()) continue;
    if (trouble->reason == "Unschedulable") trouble->message += SmallGpusOf(plan, group.index);
    return trouble;
  }
  if (!plan.unplaced.empty()) {
    const std::string excluded = ExcludedInWords(plan.status);
    const std::string hint =
        excluded.empty() ? ""
                         : absl::StrCat(". Excluded: ", excluded, "; ", HowToRetry(observed.model));
    return Trouble{"Fits", "NoRoom", plan.unplaced.begin()->second + hint};
  }
  for (const auto& [index, past] : memory) {
    const GroupObservation* group = FindGroup(observed, index);
    if (!past.exhausted() || group == nullptr || GroupIsReady(*group)) continue;
    return Trouble{
        "Ready", "FailureBudgetSpent",
        absl::StrCat("group ", GroupName(observed.model, index), " broke ", past.failures,
                     " times, each within ", kFailureWindowSeconds / 60,
                     " minutes of the last, so nothing is replaced any more. The last time: ",
                     past.last_failure, ". Remove the cause, then ", HowToRetry(observed.model))};
  }
  if (!plan.unmoved.empty()) {
    return Trouble{"Degraded", "NodeCordoned", plan.unmoved.begin()->second};
  }
  if (!plan.status.rollout().failed_revision().empty()) {
    return Trouble{"Degraded", "RolledBack", plan.status.rollout().message()};
  }
  return std::nullopt;
}

// A condition that a trouble may falsify: True once a group has proved it, Unknown before.
void SetProved(Conditions& conditions, const std::string& type, bool proved,
               const std::optional<Trouble>& trouble, const std::string& good) {
  if (trouble.has_value() && trouble->condition == type) {
    conditions.Set(type, "False", trouble->reason, trouble->message);
  } else if (proved) {
    conditions.Set(type, "True", good, "");
  } else {
    conditions.Set(type, "Unknown", "NotKnownYet", "no worker has got so far");
  }
}

// All pods of some group of several have a node.
bool IsPlaced(const Plan& plan) {
  if (!plan.unplaced.empty()) return false;
  return std::any_of(
      plan.status.groups().begin(), plan.status.groups().end(), [](const GroupStatus& group) {
        const auto& members = group.members();
        return members.size() > 1 &&
               std::none_of(members.begin(), members.end(),
                            [](const auto& member) { return member.node().empty(); });
      });
}

std::string ReadyMessage(int32_t ready, int32_t wanted) {
  return absl::StrCat(ready, " of ", wanted, " groups answer requests");
}

void SetServing(Conditions& conditions, Plan& plan, int32_t ready, int32_t wanted,
                const std::optional<Trouble>& trouble) {
  const bool complete = ready >= wanted;
  if (wanted == 0) {
    plan.status.set_phase("Sleeping");
    plan.status.set_message("replicas is 0; kubectl scale model NAME --replicas=1 starts it");
    conditions.Set("Ready", "False", "NoReplicas", plan.status.message());
  } else if (ready > 0) {
    plan.status.set_phase(trouble.has_value() ? "Degraded" : "Ready");
    plan.status.set_message(trouble.has_value() ? trouble->message : ReadyMessage(ready, wanted));
    conditions.Set("Ready", "True", "Serving", ReadyMessage(ready, wanted));
  } else {
    const std::string phase = trouble.has_value() ? "Failed" : "Pending";
    plan.status.set_phase(phase);
    plan.status.set_message(trouble.has_value() ? trouble->message : "the workers are starting");
    conditions.Set("Ready", "False", trouble.has_value() ? "WorkerFailed" : "Starting",
                   plan.status.message());
  }
  conditions.Set("Progressing", !complete && !trouble.has_value() ? "True" : "False",
                 complete ? "Complete" : "GroupsNotReady", ReadyMessage(ready, wanted));
  const bool degraded = trouble.has_value() && ready > 0;
  conditions.Set("Degraded", degraded ? "True" : "False", degraded ? trouble->reason : "AsExpected",
                 degraded ? trouble->message : "");
  const bool stalled = trouble.has_value() && ready == 0;
  conditions.Set("Stalled", stalled ? "True" : "False", stalled ? trouble->reason : "AsExpected",
                 stalled ? trouble->message : "");
}

bool HasLeavingPods(const Observed& observed) {
  for (const GroupObservation& group : observed.groups) {
    for (const PodObservation& pod : group.pods) {
      if (pod.deleting) return true;
    }
  }
  return false;
}

// The API server takes a StatefulSet whose pods it then refuses, and tells its controller alone.
bool HasNoPods(const GroupObservation& group, const Plan& plan) {
  return group.exists && group.set_is_current && group.pods.empty() &&
         std::any_of(plan.groups.begin(), plan.groups.end(),
                     [&](const GroupPlan& planned) { return planned.index == group.index; });
}

void SetPhaseOfLoading(const Observed& observed, Plan& plan) {
  if (plan.status.phase() != "Pending") return;
  for (const GroupObservation& group : observed.groups) {
    if (HasNoPods(group, plan)) {
      const std::string name = GroupName(observed.model, group.index);
      plan.status.set_message(absl::StrCat(
          "group ", name,
          " has no pods yet. If that stays so, they are refused: by a quota, a policy, "
          "or for want of a RuntimeClass; kubectl -n ",
          observed.model.metadata().namespace_(), " describe statefulset ", name,
          " says by which"));
    }
    const WorkerPhase phase = group.progress.phase;
    if (phase == WorkerPhase::kDraining) {
      plan.status.set_message(absl::StrCat("group ", GroupName(observed.model, group.index),
                                           " finishes what it runs, then goes on"));
    }
    if (phase != WorkerPhase::kLoading && phase != WorkerPhase::kWarmingUp) continue;
    plan.status.set_phase("Loading");
    plan.status.set_message(
        phase == WorkerPhase::kWarmingUp
            ? std::string("the model warms up")
            : absl::StrCat("loading the weights: ", group.progress.bytes_done / kMiB, " of ",
                           group.progress.bytes_total / kMiB, " MiB"));
  }
}

// What the workers know of the source that the spec names; else what was known of it before.
void FillTensorSizes(const Observed& observed, Plan& plan) {
  constexpr size_t kMost = 64;  // of the schema
  const std::string& uri = observed.model.spec().source().uri();
  const ModelStatus& before = observed.model.status();
  ModelStatus& status = plan.status;
  if (before.tensor_sizes_source() == uri) *status.mutable_tensor_sizes() = before.tensor_sizes();
  for (const GroupPlan& group : plan.groups) {
    for (const GroupObservation& seen : observed.groups) {
      const std::vector<int32_t>& sizes = seen.progress.tensor_sizes;
      if (seen.index != group.index || sizes.empty()) continue;
      if (seen.progress.config_hash != group.config_hash) continue;  // of another source, perhaps
      status.mutable_tensor_sizes()->Assign(sizes.begin(),
                                            sizes.begin() + std::min(sizes.size(), kMost));
    }
  }
  if (status.tensor_sizes_size() == 0) return;
  status.set_tensor_sizes_source(uri);
  status.set_tensor_sizes_text(absl::StrJoin(status.tensor_sizes(), ", "));
}

}  // namespace

bool GroupIsReady(const GroupObservation& group) {
  if (!group.exists) return false;
  if (group.progress.phase == WorkerPhase::kReady) return true;
  if (group.progress.phase != WorkerPhase::kUnknown) return false;
  // The leader's pod is ready when a token has passed the whole group.
  return std::any_of(group.pods.begin(), group.pods.end(), [](const PodObservation& pod) {
    return pod.index == 0 && pod.ready && !pod.deleting;
  });
}

void MakeStatus(const Observed& observed, const std::optional<Refusal>& refusal, int32_t wanted,
                const Memory& memory, Plan& plan) {
  ModelStatus& status = plan.status;
  status.set_observed_generation(observed.model.metadata().generation());
  status.set_selector(PodSelector(observed.model));
  status.set_url(observed.settings.url);
  status.set_digest(observed.model.status().digest());
  FillGroups(observed, memory, plan);
  FillTensorSizes(observed, plan);
  FillRankMemory(observed, plan);
  int32_t ready = 0;
  bool proved = false;
  int32_t existing = 0;
  for (const GroupObservation& group : observed.groups) {
    existing += group.exists ? 1 : 0;
    if (!GroupIsReady(group)) continue;
    proved = true;
    ready += group.index < wanted ? 1 : 0;
  }
  status.set_replicas(existing);
  status.set_ready_replicas(ready);
  status.set_groups_summary(absl::StrCat(ready, "/", wanted));

  Conditions conditions(observed, plan);
  std::optional<Trouble> trouble;
  if (refusal.has_value()) {
    conditions.Set("Accepted", "False", refusal->reason, refusal->message);
    trouble = Trouble{"Accepted", refusal->reason, refusal->message};
  } else {
    conditions.Set("Accepted", "True", "Valid", "");
    trouble = FirstTrouble(observed, memory, plan);
  }
  SetProved(conditions, "WeightsAvailable", proved, trouble, "Loaded");
  SetProved(conditions, "Fits", proved || IsPlaced(plan), trouble, "Placed");
  SetServing(conditions, plan, ready, wanted, trouble);
  SetPhaseOfLoading(observed, plan);
  if (ready < wanted && !refusal.has_value()) {
    const bool tells =
        std::any_of(observed.groups.begin(), observed.groups.end(), [](const auto& group) {
          return !GroupIsReady(group) && group.progress.phase != WorkerPhase::kUnknown;
        });
    plan.requeue_seconds = tells ? kProgressSeconds : kQuietSeconds;
  }
  // Time decides what comes next, and no event tells of it.
  if (!plan.deletions.empty() || !plan.releases.empty() || !plan.drains.empty() ||
      !plan.resumes.empty() || HasLeavingPods(observed)) {
    plan.requeue_seconds = 1;
  }
}

}  // namespace rempart::op
