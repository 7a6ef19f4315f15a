// SPDX-License-Identifier: Apache-2.0
// What follows from a fault of a GPU that a member told of: an Event, once; and where the member
// could not go on, a failure of its group, a suspicion of its node, and the end of its pod. The
// kubelet would start the process again on the same GPU. Pure; a fault is remembered in the
// Model's status, with the pod that told it, so that no fault counts twice.
#pragma once

#include <string>

#include "operator/plan/plan.h"
#include "operator/plan/recovery.h"

namespace rempart::op {

// Before what else has ended is counted: that follows from the fault.
void CountGpuFaults(const Observed& observed, const GroupObservation& group, GroupMemory& memory,
                    Plan& plan);

// Whether this very pod, and not an earlier one of its name, has told that it cannot go on.
bool HasBrokenGpu(const GroupMemory& memory, const PodObservation& pod);

// Of a pod for which that is so.
std::string WhyGpuIsBroken(const GroupMemory& memory, const PodObservation& pod);

// "NVIDIA H200 GPU-5fb9a...: XID 79, the GPU has fallen off the bus".
std::string FaultInWords(const GpuFaultObservation& fault);

}  // namespace rempart::op
