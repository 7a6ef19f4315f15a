// SPDX-License-Identifier: Apache-2.0
// How a changed manifest reaches the groups. Pure; what it must remember from one plan to the next
// (when the rollout began, what was taken back) stands in the Model's status.
//
// DrainThenReplace: of the groups that run an older configuration and serve, one at a time is
// drained (operator/plan/drain.h) and replaced, and only while every other group serves: no spare
// machine is needed.
// SurgeThenDrain: one more group comes first, and goes when the last has been replaced.
// A new configuration that a worker refuses, or that brings no group to Ready in time, is taken
// back: the groups get the configuration with which they last served.
#pragma once

#include "operator/plan/plan.h"

namespace rempart::op {

inline constexpr char kRetryAnnotation[] = "rempart.dev/retry";

// Fills groups, removed_groups, last_good, status.rollout and the deletions of outdated pods. Reads
// the suspicions in plan.status.
void PlanRollout(const Observed& observed, int32_t wanted, Plan& plan);

// Whether the group runs what is planned for it, and serves.
bool IsSettled(const Observed& observed, const GroupPlan& group);

}  // namespace rempart::op
