// SPDX-License-Identifier: Apache-2.0
// How a group is taken out of service before it is replaced, moved or removed. Pure; since when it
// drains stands in the Model's status.
//
//   serves ──Drain──> drains ──nothing runs, or drainSeconds have passed──> its pods may go
//      ^                 │
//      └──────Resume─────┘ wanted after all: scaled up again, rolled back, another group broke
//
// A plan says each time which groups shall drain. Nothing but the next plan, in which the group is
// not named any more, is needed to revive it.
#pragma once

#include <string>

#include "operator/plan/plan.h"

namespace rempart::op {

inline constexpr int32_t kDrainSeconds = 30;

// It serves, or would at a word: what drains by order can be told to go on.
bool CanServe(const GroupObservation& group);

// It drains, and nothing runs any more.
bool IsIdle(const GroupObservation& group);

// Whether the group may lose pods now: it has nothing left to finish, or has had its time. Until it
// is gone it is among plan.drains; `why` is told when it begins.
bool HasDrained(const Observed& observed, const GroupObservation& group, const std::string& why,
                Plan& plan);

// Adds the planned groups that drain although nothing asks for it.
void ReviveOthers(const Observed& observed, Plan& plan);

}  // namespace rempart::op
