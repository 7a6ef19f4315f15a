// SPDX-License-Identifier: Apache-2.0
// From what the members of a group say on Join to what a plan sees of them.
#pragma once

#include "absl/time/time.h"
#include "operator/plan/members.h"
#include "operator/reconcile/metrics.h"
#include "operator/streams/join_registry.h"

namespace rempart::op {

MembersObservation ObserveMembers(const GroupReport& report, absl::Time now);

GroupFigures FiguresOf(const std::string& group, const GroupReport& report);

}  // namespace rempart::op
