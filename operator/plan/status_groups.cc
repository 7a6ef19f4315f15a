// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "operator/plan/gpu_faults.h"
#include "operator/plan/group_plan.h"
#include "operator/plan/status.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::GroupStatus;
using serving::v1alpha1::MemberStatus;

constexpr int64_t kMiB = 1 << 20;
// A member that has said nothing for so long is called silent.
constexpr int32_t kSilentMs = 2500;

std::string GroupPhase(const GroupObservation& group) {
  if (GroupIsReady(group)) return "Ready";
  if (group.progress.phase == WorkerPhase::kUnknown) {
    for (const PodObservation& pod : group.pods) {
      if (!pod.unschedulable.empty() || pod.waiting_reason == "CrashLoopBackOff") return "Failed";
    }
  }
  return GroupPhaseName(group.progress.phase);
}

// How the GPUs are; empty: nothing is known.
std::string HealthOf(const MemberObservation& member) {
  if (member.gpu_fault.has_value()) return FaultInWords(*member.gpu_fault);
  if (!member.gpu_concern.empty()) return member.gpu_concern;
  return member.gpus.empty() ? "" : "OK";
}

void FillGpus(const MemberObservation& member, MemberStatus& status) {
  *status.mutable_gpus() = {member.gpus.begin(), member.gpus.end()};
  if (const std::string health = HealthOf(member); !health.empty()) status.set_health(health);
}

void FillMember(const GroupObservation& group, const PodObservation& pod, MemberStatus& status) {
  status.set_pod(pod.name);
  status.set_node(pod.node);
  status.set_state(pod.deleting ? "Terminating" : pod.gated ? "Gated" : pod.phase);
  status.set_step(group.progress.step);
  status.set_last_step_age_seconds(group.progress.last_step_age_seconds);
  for (const MemberObservation& member : group.members.members) {
    if (member.pod != pod.name || pod.deleting) continue;
    status.set_rank(member.first_rank);
    status.set_step(member.step);
    status.set_last_step_age_seconds(member.last_step_age_seconds);
    status.set_activity(member.activity);
    FillGpus(member, status);
    if (!member.node_warning.empty()) status.set_node_warning(member.node_warning);
    if (member.silent_ms >= kSilentMs) {
      status.set_state("Silent");
    } else if (member.connected && member.phase != WorkerPhase::kUnknown) {
      status.set_state(GroupPhaseName(member.phase));
    }
  }
}

bool WasWarned(const Observed& observed, const std::string& pod) {
  for (const GroupStatus& group : observed.model.status().groups()) {
    for (const MemberStatus& member : group.members()) {
      if (member.pod() == pod) return member.has_node_warning();
    }
  }
  return false;
}

// Once, when it begins: how near the end is, the status tells.
void TellNodeWarning(const Observed& observed, const MemberStatus& member, Plan& plan) {
  if (!member.has_node_warning() || WasWarned(observed, member.pod())) return;
  plan.events.push_back({"Warning", "NodeDiskNearlyFull",
                         absl::StrCat("pod ", member.pod(), " on node ", member.node(), ": ",
                                      member.node_warning())});
}

void FillPast(const GroupMemory& past, GroupStatus& status) {
  if (past.failures > 0) status.set_failures(past.failures);
  if (!past.last_failure_time.empty()) status.set_last_failure_time(past.last_failure_time);
  if (past.counted_epoch > 0) status.set_counted_epoch(past.counted_epoch);
  if (!past.last_failure.empty()) status.set_last_failure(past.last_failure);
}

void FillFault(const GroupMemory& past, const PodObservation& pod, MemberStatus& status) {
  const auto fault = past.gpu_faults.find(pod.name);
  if (fault != past.gpu_faults.end()) *status.mutable_gpu_fault() = fault->second;
}

// Why a pod of a group that still runs is not coming back as it is; empty: it stays.
std::string WhyItGoes(const PodObservation& pod) {
  if (pod.deleting) return "its pod is being deleted";
  if (pod.phase == "Failed") return "its pod has failed";
  return "";
}

// The members know what they wait for; that a pod is on its way out the API server knows first,
// while the group still finishes what it runs and requests already wait for the pod that follows.
std::string WaitsFor(const GroupObservation& group) {
  if (!group.members.waits_for.empty() || group.pods.size() < 2) return group.members.waits_for;
  for (const PodObservation& pod : group.pods) {
    const std::string why = WhyItGoes(pod);
    if (why.empty()) continue;
    std::string name = absl::StrCat("pod ", pod.name, " on ", pod.node);
    for (const MemberObservation& member : group.members.members) {
      if (member.pod == pod.name) name = absl::StrCat("rank ", member.first_rank, " in ", name);
    }
    return absl::StrCat(name, ": ", why);
  }
  return "";
}

// Told when it is whole, so that a start does not write a status for each of its parts.
void FillStart(const std::vector<StartPartObservation>& parts, GroupStatus& status) {
  const bool is_whole = std::any_of(parts.begin(), parts.end(),
                                    [](const auto& part) { return part.part == "total"; });
  if (!is_whole) return;
  for (const StartPartObservation& part : parts) {
    serving::v1alpha1::StartPart& told = *status.add_start();
    told.set_part(part.part);
    told.set_milliseconds(part.milliseconds);
  }
}

void FillTogether(const GroupObservation& seen, GroupStatus& status) {
  const MembersObservation& members = seen.members;
  if (members.epoch > 0) status.set_epoch(members.epoch);
  const std::string waits_for = WaitsFor(seen);
  if (!waits_for.empty()) status.set_waiting_for(waits_for);
  FillStart(members.start, status);
  const FabricObservation& fabric = members.fabric;
  if (fabric.all_reduce_microseconds <= 0) return;
  status.mutable_fabric()->set_all_reduce_microseconds(fabric.all_reduce_microseconds);
  status.mutable_fabric()->set_mib_per_second(fabric.mib_per_second);
  status.mutable_fabric()->set_microseconds_per_token(fabric.microseconds_per_token);
  if (fabric.one_shot_kib > 0) status.mutable_fabric()->set_one_shot_kib(fabric.one_shot_kib);
}

}  // namespace

std::string GroupPhaseName(WorkerPhase phase) {
  switch (phase) {
    case WorkerPhase::kConnecting:
      return "Connecting";
    case WorkerPhase::kLoading:
      return "Loading";
    case WorkerPhase::kLoaded:
      return "Loaded";
    case WorkerPhase::kWarmingUp:
      return "WarmingUp";
    case WorkerPhase::kReady:
      return "Ready";
    case WorkerPhase::kDraining:
      return "Draining";
    case WorkerPhase::kFailed:
      return "Failed";
    default:
      return "Pending";
  }
}

void FillGroups(const Observed& observed, const Memory& memory, Plan& plan) {
  int64_t done = 0;
  int64_t total = 0;
  for (const GroupObservation& seen : observed.groups) {
    GroupStatus& group = *plan.status.add_groups();
    group.set_name(GroupName(observed.model, seen.index));
    group.set_phase(GroupPhase(seen));
    int32_t restarts = 0;
    for (const PodObservation& pod : seen.pods) {
      MemberStatus& member = *group.add_members();
      FillMember(seen, pod, member);
      const auto past = memory.find(seen.index);
      if (past != memory.end()) FillFault(past->second, pod, member);
      TellNodeWarning(observed, member, plan);
      restarts += pod.restarts;
      if (!pod.last_termination.empty()) group.set_last_failure(pod.last_termination);
    }
    group.set_restarts(restarts);
    FillTogether(seen, group);
    const auto drain = plan.drains.find(seen.index);
    if (drain != plan.drains.end()) group.set_draining_since(drain->second.since);
    const auto past = memory.find(seen.index);
    if (past != memory.end()) FillPast(past->second, group);
    if (seen.progress.phase == WorkerPhase::kLoading) {
      done += seen.progress.bytes_done;
      total += seen.progress.bytes_total;
    }
    if (!seen.progress.digest.empty()) plan.status.set_digest(seen.progress.digest);
  }
  if (total > 0) {
    plan.status.mutable_download()->set_mib_done(static_cast<int32_t>(done / kMiB));
    plan.status.mutable_download()->set_mib_total(static_cast<int32_t>(total / kMiB));
  }
}

}  // namespace rempart::op
