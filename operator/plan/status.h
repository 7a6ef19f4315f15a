// SPDX-License-Identifier: Apache-2.0
// The status of a Model: conditions whose messages say what to do, the phase for a glance, and the
// events of what changed since the last status.
#pragma once

#include <optional>

#include "operator/plan/plan.h"
#include "operator/plan/recovery.h"
#include "operator/plan/validate.h"

namespace rempart::op {

// A group serves when its leader says so; or, while no stream tells (the operator has just
// started), when its pod is Ready.
bool GroupIsReady(const GroupObservation& group);

void MakeStatus(const Observed& observed, const std::optional<Refusal>& refusal, int32_t wanted,
                const Memory& memory, Plan& plan);

// "Pending", "Loading", "Ready"...
std::string GroupPhaseName(WorkerPhase phase);

// status.groups and status.download.
void FillGroups(const Observed& observed, const Memory& memory, Plan& plan);

}  // namespace rempart::op
