// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/gpu_faults.h"

#include "absl/strings/str_cat.h"
#include "operator/plan/group_plan.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::GpuFaultStatus;

// The others of a group may notice the loss before the driver names its cause.
constexpr int32_t kSameCauseSeconds = 10;

std::string InWords(const std::string& gpu, int32_t xid, const std::string& meaning) {
  return absl::StrCat(gpu, xid == 0 ? ": " : absl::StrCat(": XID ", xid, ", "), meaning);
}

bool IsSame(const GpuFaultStatus& known, const GpuFaultObservation& seen) {
  return known.gpu() == seen.gpu && known.xid() == seen.xid && known.time() == seen.time;
}

// Whether the words that are heard under the pod's name, perhaps still those of an earlier pod, are
// about this fault.
bool IsStillTold(const GroupObservation& group, const PodObservation& pod,
                 const GpuFaultStatus& known) {
  for (const MemberObservation& member : group.members.members) {
    if (member.pod == pod.name && member.gpu_fault.has_value()) {
      return IsSame(known, *member.gpu_fault);
    }
  }
  return false;
}

bool JustNow(const Observed& observed, const std::string& time) {
  return !time.empty() && observed.now_seconds - SecondsOf(time) < kSameCauseSeconds;
}

bool WasJustSuspected(const Observed& observed, const std::string& node, const Plan& plan) {
  for (const auto& suspect : plan.status.suspect_nodes()) {
    if (suspect.name() == node) return JustNow(observed, suspect.last_time());
  }
  return false;
}

void TellFault(const GpuFaultObservation& fault, const PodObservation& pod, Plan& plan) {
  const std::string advice = fault.advice.empty() ? "" : absl::StrCat(". To do: ", fault.advice);
  plan.events.push_back(
      {"Warning", "GpuFault",
       absl::StrCat(
           "pod ", pod.name, " on node ", pod.node, ": ", FaultInWords(fault),
           fault.broken ? ". Its process ends, and the pod is replaced" : ". Its process goes on",
           advice)});
}

void TakeFault(const Observed& observed, const GpuFaultObservation& seen, const PodObservation& pod,
               GroupMemory& memory, Plan& plan) {
  GpuFaultStatus& known = memory.gpu_faults[pod.name];
  known.set_gpu(seen.gpu);
  known.set_xid(seen.xid);
  known.set_meaning(seen.meaning);
  known.set_time(seen.time);
  known.set_broken(seen.broken);
  known.set_pod_uid(pod.uid);
  TellFault(seen, pod, plan);
  if (!seen.broken) return;
  const std::string why = FaultInWords(seen);
  if (!JustNow(observed, memory.last_failure_time)) CountFailure(observed, why, memory);
  if (!WasJustSuspected(observed, pod.node, plan)) RaiseSuspicion(observed, pod.node, why, plan);
}

}  // namespace

void CountGpuFaults(const Observed& observed, const GroupObservation& group, GroupMemory& memory,
                    Plan& plan) {
  for (const PodObservation& pod : group.pods) {
    const auto known = memory.gpu_faults.find(pod.name);
    if (known != memory.gpu_faults.end()) {
      if (IsStillTold(group, pod, known->second)) continue;
      if (known->second.pod_uid() != pod.uid) memory.gpu_faults.erase(known);
    }
    const MemberObservation* member = FindMember(group, pod);
    if (member == nullptr || !member->gpu_fault.has_value()) continue;
    TakeFault(observed, *member->gpu_fault, pod, memory, plan);
  }
}

bool HasBrokenGpu(const GroupMemory& memory, const PodObservation& pod) {
  const auto fault = memory.gpu_faults.find(pod.name);
  return fault != memory.gpu_faults.end() && fault->second.broken() &&
         fault->second.pod_uid() == pod.uid;
}

std::string WhyGpuIsBroken(const GroupMemory& memory, const PodObservation& pod) {
  const GpuFaultStatus& fault = memory.gpu_faults.at(pod.name);
  return absl::StrCat("its GPU is broken: ", InWords(fault.gpu(), fault.xid(), fault.meaning()));
}

std::string FaultInWords(const GpuFaultObservation& fault) {
  return InWords(fault.gpu, fault.xid, fault.meaning);
}

}  // namespace rempart::op
