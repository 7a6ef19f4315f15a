// SPDX-License-Identifier: Apache-2.0
// From what the members of a group say on Join to what a plan sees of them; and who may say it.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "operator/kube/store.h"
#include "operator/plan/members.h"
#include "operator/reconcile/metrics.h"
#include "operator/streams/join_registry.h"

namespace rempart::op {

MembersObservation ObserveMembers(const GroupReport& report, absl::Time now);

// FailedPrecondition when this worker's pod has been replaced or removed: its node was cut off,
// say, and has not ended it yet. What it would say, or be told, is another's by now.
absl::Status CheckHasItsPlace(const group::v1::Identity& identity, const Store<k8s::v1::Pod>& pods);

GroupFigures FiguresOf(const std::string& group, const GroupReport& report);

}  // namespace rempart::op
