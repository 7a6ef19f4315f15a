// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/recovery.h"

#include <algorithm>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "operator/plan/drain.h"
#include "operator/plan/gpu_faults.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/group_plan.h"
#include "operator/plan/placement.h"
#include "operator/plan/quantity.h"
#include "operator/plan/rollout.h"
#include "operator/plan/status.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::SuspectNode;

// Of a worker that does not say in which pod it runs: one that came after the end of an epoch, or
// so shortly before that the clocks and the seconds of its creation cannot tell, replaces another.
constexpr int32_t kReplacedMs = 3000;
// A member silent for so long, while others of its group are heard, is replaced.
constexpr int32_t kSilentMs = 5000;
constexpr int32_t kHeardMs = 2500;
// A member whose stream is gone is a process that ended, or a link that broke; the kubelet gets
// this long to start it again.
constexpr int32_t kGoneMs = 10000;
// A member that does not come back to a group that waits for it.
constexpr int32_t kStuckMs = 10000;
// A pod that should be gone for so long is removed without the word of its node.
constexpr int32_t kOverdueSeconds = 15;
constexpr int32_t kOverdueOfLostSeconds = 3;
// What was placed and finds no room after all goes back behind its gate.
constexpr int32_t kUnschedulableSeconds = 10;
// A new operator hears every living member within a few seconds.
constexpr int32_t kListenSeconds = 10;
constexpr int32_t kLongestPauseSeconds = 60;
// Of a member of a group that has drained.
constexpr int32_t kGraceOfIdleSeconds = 1;

const NodeObservation* FindNode(const Observed& observed, const std::string& name) {
  for (const NodeObservation& node : observed.nodes) {
    if (node.name == name) return &node;
  }
  return nullptr;
}

SuspectNode& Suspect(const std::string& node, ModelStatus& status) {
  for (SuspectNode& known : *status.mutable_suspect_nodes()) {
    if (known.name() == node) return known;
  }
  SuspectNode& fresh = *status.add_suspect_nodes();
  fresh.set_name(node);
  return fresh;
}

// "rank 1 (pod smollm2-0-1 on node node-1)": the blamed ranks of this pod, or its first one.
std::string BlamedInWords(const Observed& observed, const EndingObservation& ending,
                          const PodObservation& pod) {
  const int32_t ranks_per_pod = RanksPerPod(observed.model.spec());
  std::vector<int32_t> ranks;
  for (const int32_t rank : ending.blamed_ranks) {
    if (rank / ranks_per_pod == pod.index) ranks.push_back(rank);
  }
  if (ranks.empty()) ranks.push_back(pod.index * ranks_per_pod);
  return absl::StrCat("rank ", absl::StrJoin(ranks, ", "), " (pod ", pod.name, " on node ",
                      pod.node, ")");
}

// Whether this pod is another one than the one to blame, which was deleted by hand or by a plan: no
// node is to blame.
bool IsReplacement(const EndingObservation& ending, size_t blamed, const PodObservation& pod) {
  const auto& uids = ending.blamed_pod_uids;
  if (blamed < uids.size() && !uids[blamed].empty()) return uids[blamed] != pod.uid;
  return int64_t{1000} * pod.age_seconds < int64_t{ending.age_ms} + kReplacedMs;
}

// The end of an epoch that nobody asked for.
void CountEnding(const Observed& observed, const GroupObservation& group, GroupMemory& memory,
                 Plan& plan) {
  const EndingObservation& ending = group.members.ending;
  // On whom to blame it may be learned later than that it is over.
  if (ending.blamed_pods.empty() || ending.epoch <= memory.counted_epoch) return;
  memory.counted_epoch = ending.epoch;
  std::vector<std::string> nodes;
  std::vector<std::string> blamed_members;
  bool by_hand = false;
  bool by_gpu = false;  // counted with the fault
  for (const PodObservation& pod : group.pods) {
    const auto& blamed = ending.blamed_pods;
    const auto found = std::find(blamed.begin(), blamed.end(), pod.name);
    if (found == blamed.end()) continue;
    by_hand |= pod.deleting || pod.gated ||
               IsReplacement(ending, static_cast<size_t>(found - blamed.begin()), pod);
    nodes.push_back(pod.node);
    by_gpu |= HasBrokenGpu(memory, pod);
    blamed_members.push_back(BlamedInWords(observed, ending, pod));
  }
  if (by_hand) return;
  const std::string name = GroupName(observed.model, group.index);
  if (!by_gpu) CountFailure(observed, ending.reason, memory);
  plan.events.push_back(
      {"Warning", "MemberLost",
       absl::StrCat("group ", name, " lost ",
                    blamed_members.empty() ? "a member that is no more there"
                                           : absl::StrJoin(blamed_members, " and "),
                    ", noticed after ", ending.detection_ms, " ms: ", ending.reason)});
  // When all are lost at once, it is none of them.
  if (by_gpu || nodes.size() >= group.pods.size()) return;
  for (const std::string& node : nodes) RaiseSuspicion(observed, node, ending.reason, plan);
}

// A group of one pod has nobody to tell of it but the kubelet.
void CountRestarts(const Observed& observed, const GroupObservation& group, GroupMemory& memory,
                   Plan& plan) {
  int32_t restarts = 0;
  const PodObservation* last = nullptr;
  for (const PodObservation& pod : group.pods) {
    restarts += pod.restarts;
    if (pod.restarts > 0) last = &pod;
  }
  const bool more = restarts > memory.restarts && last != nullptr;
  memory.restarts = restarts;
  // Exit codes of our own say what the manifest has wrong; no node is to blame for that.
  if (!more || group.pods.size() > 1 || last->last_exit_code < 128) return;
  CountFailure(observed, last->last_termination, memory);
  plan.events.push_back(
      {"Warning", "MemberLost",
       absl::StrCat("pod ", last->name, " on ", last->node, " ended: ", last->last_termination)});
  RaiseSuspicion(observed, last->node, last->last_termination, plan);
}

bool IsReplacedAlready(const Plan& plan, const PodObservation& pod) {
  return std::any_of(plan.deletions.begin(), plan.deletions.end(),
                     [&](const PodDeletion& deletion) { return deletion.uid == pod.uid; });
}

bool SomebodyElseIsHeard(const GroupObservation& group, const MemberObservation& silent) {
  return std::any_of(
      group.members.members.begin(), group.members.members.end(), [&](const auto& member) {
        return member.pod != silent.pod && member.connected && member.silent_ms < kHeardMs;
      });
}

// Others are free for the next epoch, and this one is not.
bool IsStuck(const GroupObservation& group, const MemberObservation& member) {
  const MembersObservation& all = group.members;
  if (all.running || all.ending.epoch == 0 || all.ending.age_ms < kStuckMs) return false;
  if (member.phase == WorkerPhase::kStarting || member.phase == WorkerPhase::kFailed) return false;
  return member.epoch != 0 && member.epoch <= all.ending.epoch;
}

struct Verdict {
  std::string why;  // empty: leave the pod
  std::optional<int32_t> grace_seconds;
};

// Of a pod whose object is on its way out already.
Verdict JudgeLeaving(const Observed& observed, const GroupObservation& group,
                     const PodObservation& pod) {
  const NodeObservation* node = FindNode(observed, pod.node);
  const MemberObservation* member = FindMember(group, pod);
  const bool lost =
      (node != nullptr && !node->ready) || (member != nullptr && member->silent_ms >= kSilentMs);
  if (pod.overdue_seconds < (lost ? kOverdueOfLostSeconds : kOverdueSeconds)) return {};
  return {absl::StrCat("node ", pod.node, " does not confirm its end"), 0};
}

Verdict JudgeMember(const Observed& observed, const GroupObservation& group,
                    const PodObservation& pod) {
  const bool listened = observed.listening_seconds >= kListenSeconds;
  const MemberObservation* member = FindMember(group, pod);
  const int32_t silent_ms =
      member != nullptr ? member->silent_ms : (listened ? pod.age_seconds * 1000 : 0);
  const NodeObservation* node = FindNode(observed, pod.node);
  if (node != nullptr && !node->ready && silent_ms >= kSilentMs && listened) {
    return {absl::StrCat("node ", pod.node, " does not answer"), 0};
  }
  if (!pod.unschedulable.empty() && pod.unschedulable_seconds >= kUnschedulableSeconds &&
      group.pods.size() > 1) {
    return {absl::StrCat("its node has no room after all: ", pod.unschedulable), 0};
  }
  if (member == nullptr || pod.phase != "Running" || group.pods.size() < 2) return {};
  // A process that ended is its kubelet's to start again.
  const bool restarting = !pod.waiting_reason.empty();
  const int32_t bound = member->connected ? kSilentMs : kGoneMs;
  if (!restarting && silent_ms >= bound && SomebodyElseIsHeard(group, *member)) {
    return {absl::StrCat("silent for ", silent_ms / 1000, " s"), 1};
  }
  if (member->connected && silent_ms < kHeardMs && IsStuck(group, *member)) {
    return {"it does not leave an epoch that is over", 1};
  }
  return {};
}

// A node that does not end what is deleted may be cut off before anybody calls it not ready: its
// replacement should rather not go there again. One cut makes one suspicion, whoever noticed first.
void SuspectOnce(const Observed& observed, const std::string& node, const std::string& why,
                 Plan& plan) {
  const auto& suspects = plan.status.suspect_nodes();
  const bool known = std::any_of(suspects.begin(), suspects.end(),
                                 [&](const SuspectNode& one) { return one.name() == node; });
  if (!known) RaiseSuspicion(observed, node, why, plan);
}

bool MayActNow(const Observed& observed, const GroupMemory& memory) {
  if (memory.failures <= 1) return true;
  const int32_t pause = std::min(1 << std::min(memory.failures - 1, 10), kLongestPauseSeconds);
  return observed.now_seconds - SecondsOf(memory.last_failure_time) >= pause;
}

PlacementRequest RequestOf(const GroupPlan& group) {
  PlacementRequest request;
  const auto resources = PodResources(group.spec);
  request.each = ParseAmountsOf(resources.limits());
  for (const auto& [resource, amount] : ParseAmountsOf(resources.requests())) {
    request.each[resource] = amount;
  }
  const auto& placement = group.spec.placement();
  request.node_selector = {placement.node_selector().begin(), placement.node_selector().end()};
  request.jurisdictions = {placement.jurisdictions().begin(), placement.jurisdictions().end()};
  request.topology_key = placement.topology_key();
  request.excluded_nodes = {group.excluded_nodes.begin(), group.excluded_nodes.end()};
  request.suspect_nodes = {group.suspect_nodes.begin(), group.suspect_nodes.end()};
  request.small_nodes = group.small_nodes;
  request.rank_need = group.rank_need;
  if (group.spec.device() == "gpu") request.tolerated_taints = {kGpuTaint};
  return request;
}

// Whether a pod that does not serve must leave its node. A pod that waits for no place of ours is
// put by the scheduler, which may choose the node again: it is moved once, not for ever.
bool MustLeave(const Observed& observed, const GroupPlan& group, const PodObservation& pod,
               const ModelStatus& status) {
  if (group.small_nodes.count(pod.node) > 0) return true;
  const auto& excluded = group.excluded_nodes;
  if (std::find(excluded.begin(), excluded.end(), pod.node) == excluded.end()) return false;
  if (IsGated(group)) return true;
  for (const SuspectNode& node : status.suspect_nodes()) {
    if (node.name() != pod.node) continue;
    return observed.now_seconds - pod.age_seconds <= SecondsOf(node.last_time());
  }
  return false;
}

// Pods of a group that must leave their nodes, if others can take them: all or none, and not before
// the group has drained. True when the group is on its way.
bool MoveAway(const Observed& observed, const GroupPlan& group, const GroupObservation& seen,
              bool others_serve, Plan& plan) {
  PlacementRequest request = RequestOf(group);
  std::vector<const PodObservation*> leaving;
  std::string why;
  bool cordoned = false;
  bool small = true;  // nowhere is better than where it cannot run
  for (const PodObservation& pod : seen.pods) {
    if (pod.deleting || IsReplacedAlready(plan, pod)) return false;
    const NodeObservation* node = FindNode(observed, pod.node);
    const bool excluded = !CanServe(seen) && MustLeave(observed, group, pod, plan.status);
    if (node != nullptr && (node->cordoned || excluded)) {
      leaving.push_back(&pod);
      request.pods.push_back(pod.name);
      cordoned |= node->cordoned;
      const bool is_small = group.small_nodes.count(pod.node) > 0;
      small &= is_small && !node->cordoned;
      why = absl::StrCat("node ", pod.node,
                         node->cordoned ? " is cordoned"
                         : is_small     ? absl::StrCat(" has too small GPUs: ", group.rank_need)
                                        : " is excluded");
    } else if (!pod.node.empty()) {
      request.kept_nodes.insert(pod.node);
    }
  }
  if (leaving.empty()) return false;
  const PlacementAnswer answer = PlaceGroup(request, observed.nodes);
  if (answer.nodes.empty() && !small) {
    if (cordoned) {
      plan.unmoved[group.index] = absl::StrCat("group ", group.name, " stays: ", why, ", and ",
                                               answer.missing, ". Make room, or uncordon the node");
    }
    return false;
  }
  if (CanServe(seen) && !others_serve) return false;
  if (!HasDrained(observed, seen, why, plan)) return true;
  // A follower waits for the end of its epoch, which here is its own end.
  const std::optional<int32_t> grace =
      IsIdle(seen) ? std::optional<int32_t>(kGraceOfIdleSeconds) : std::nullopt;
  for (const PodObservation* pod : leaving) {
    plan.deletions.push_back({pod->name, pod->uid, grace, why});
  }
  return true;
}

}  // namespace

const MemberObservation* FindMember(const GroupObservation& group, const PodObservation& pod) {
  for (const MemberObservation& member : group.members.members) {
    if (member.pod == pod.name && member.silent_ms / 1000 <= pod.age_seconds) return &member;
  }
  return nullptr;
}

void RaiseSuspicion(const Observed& observed, const std::string& node, const std::string& why,
                    Plan& plan) {
  if (node.empty()) return;
  SuspectNode& suspect = Suspect(node, plan.status);
  suspect.set_count(suspect.count() + 1);
  suspect.set_last_time(observed.now);
  suspect.set_reason(why);
  if (suspect.excluded() || suspect.count() < kSuspectsToExclude) return;
  suspect.set_excluded(true);
  plan.events.push_back(
      {"Warning", "NodeExcluded",
       absl::StrCat("node ", node, " gets no more members of this Model: ", suspect.count(),
                    " broke there, the last: ", why, ". To lift it: kubectl annotate model ",
                    observed.model.metadata().name(), " ", kRetryAnnotation,
                    "=\"$(date)\" --overwrite")});
}

void CountFailure(const Observed& observed, const std::string& why, GroupMemory& memory) {
  const int64_t since = observed.now_seconds - SecondsOf(memory.last_failure_time);
  if (since > kFailureWindowSeconds) memory.failures = 0;
  ++memory.failures;
  memory.last_failure_time = observed.now;
  memory.last_failure = why;
}

Memory Remember(const Observed& observed, Plan& plan) {
  const ModelStatus& before = observed.model.status();
  const auto& annotations = observed.model.metadata().annotations();
  const auto asked = annotations.find(kRetryAnnotation);
  const std::string retry = asked == annotations.end() ? "" : asked->second;
  const bool forget = retry != before.retry();
  *plan.status.mutable_rollout() = before.rollout();
  plan.status.set_retry(retry);
  if (forget) {
    plan.status.mutable_rollout()->clear_failed_revision();
    plan.status.mutable_rollout()->set_progress_time(observed.now);
    if (!retry.empty()) {
      plan.events.push_back(
          {"Normal", "Retry", "failures, suspicions and what was taken back are forgotten"});
    }
  } else {
    for (const SuspectNode& node : before.suspect_nodes()) {
      const int64_t age = observed.now_seconds - SecondsOf(node.last_time());
      if (node.excluded() || age < kSuspicionSeconds) *plan.status.add_suspect_nodes() = node;
    }
  }
  Memory memory;
  for (const GroupObservation& group : observed.groups) {
    GroupMemory& one = memory[group.index];
    for (const auto& known : before.groups()) {
      if (known.name() != GroupName(observed.model, group.index)) continue;
      one.failures = forget ? 0 : known.failures();
      one.last_failure_time = known.last_failure_time();
      one.last_failure = known.last_failure();
      one.counted_epoch = known.counted_epoch();
      one.restarts = known.restarts();
      for (const auto& member : known.members()) {
        if (member.has_gpu_fault()) one.gpu_faults[member.pod()] = member.gpu_fault();
      }
    }
    CountGpuFaults(observed, group, one, plan);
    CountEnding(observed, group, one, plan);
    CountRestarts(observed, group, one, plan);
  }
  return memory;
}

void ReplaceLost(const Observed& observed, const Memory& memory, Plan& plan) {
  int32_t unsettled = 0;
  for (const GroupPlan& group : plan.groups) unsettled += IsSettled(observed, group) ? 0 : 1;
  for (const GroupPlan& group : plan.groups) {
    const GroupObservation* seen = FindGroup(observed, group.index);
    if (seen == nullptr || !seen->exists) continue;
    const auto known = memory.find(group.index);
    const GroupMemory& past = known->second;
    for (const PodObservation& pod : seen->pods) {
      if (pod.deleting) {
        const Verdict verdict = JudgeLeaving(observed, *seen, pod);
        if (verdict.why.empty()) continue;
        plan.deletions.push_back({pod.name, pod.uid, verdict.grace_seconds, verdict.why});
        SuspectOnce(observed, pod.node, verdict.why, plan);
        continue;
      }
      if (pod.gated || past.exhausted() || IsReplacedAlready(plan, pod)) continue;
      const Verdict verdict = HasBrokenGpu(past, pod) ? Verdict{WhyGpuIsBroken(past, pod), 1}
                                                      : JudgeMember(observed, *seen, pod);
      if (verdict.why.empty() || !MayActNow(observed, past)) continue;
      plan.deletions.push_back({pod.name, pod.uid, verdict.grace_seconds, verdict.why});
    }
    if (past.exhausted()) continue;
    const int32_t others = unsettled - (IsSettled(observed, group) ? 0 : 1);
    // One group at a time.
    unsettled += MoveAway(observed, group, *seen, others == 0, plan) ? 1 : 0;
  }
}

void PlacePods(const Observed& observed, Plan& plan) {
  std::vector<NodeObservation> nodes = observed.nodes;
  for (const GroupPlan& group : plan.groups) {
    const GroupObservation* seen = FindGroup(observed, group.index);
    if (seen == nullptr || !seen->exists) continue;
    PlacementRequest request = RequestOf(group);
    std::map<std::string, const PodObservation*> gated;
    int32_t present = 0;
    for (const PodObservation& pod : seen->pods) {
      if (pod.deleting || pod.config_hash != group.config_hash) continue;
      ++present;
      if (pod.gated) {
        gated[pod.name] = &pod;
        request.pods.push_back(pod.name);
      } else if (!pod.node.empty()) {
        request.kept_nodes.insert(pod.node);
      }
    }
    if (gated.empty() || present < group.pod_count) continue;
    const PlacementAnswer answer = PlaceGroup(request, nodes);
    if (answer.nodes.empty()) {
      plan.unplaced[group.index] = absl::StrCat("group ", group.name, " waits: ", answer.missing);
      continue;
    }
    TakePlaces(answer, request.each, nodes);
    for (const auto& [pod, node] : answer.nodes) {
      plan.releases.push_back({pod, gated[pod]->uid, node, request.each});
    }
  }
}

std::string ExcludedInWords(const ModelStatus& status) {
  std::vector<std::string> names;
  for (const SuspectNode& node : status.suspect_nodes()) {
    if (node.excluded()) names.push_back(absl::StrCat(node.name(), " (", node.reason(), ")"));
  }
  return absl::StrJoin(names, ", ");
}

}  // namespace rempart::op
