// SPDX-License-Identifier: Apache-2.0
// The one decision over a group of several pods: when an epoch begins, when it may serve, when it
// is over and who is to blame. Pure: the caller asks at each word of a member and a few times a
// second, carries the decision out, and keeps the state (Apply).
//
// Invariants, held by a seeded simulation:
//  1. Epochs only grow, over restarts of the operator, too: members say the last one they were
//  given.
//  2. An epoch begins when every pod of one configuration waits for one, so that none serves an
//  older
//     one. It serves after every pod has said that its weights are there.
//  3. A broken stream to a member of a serving group ends nothing. What ends it: a member that says
//     so; a new process in a member's place; a member that has failed; a member silent to the
//     operator and to its peers; ranks that wait for a rank that does not come, and does not wait
//     itself.
//  4. What was adopted from members that served before the operator began is treated as its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operator/group/group_state.h"

namespace rempart::op {

// A member that has said nothing for so long is silent.
constexpr absl::Duration kSilence = absl::Seconds(2);
// Ranks that wait so long for one that does not compute have lost it, or the link to it.
constexpr absl::Duration kCollectiveBound = absl::Seconds(2);
// The same for a rank that says that it computes: slow is not stuck.
constexpr absl::Duration kComputeBound = absl::Seconds(15);
// From the epoch until every member is linked to the others.
constexpr absl::Duration kConnectBound = absl::Seconds(20);
// Between formations that failed, doubled each time.
constexpr absl::Duration kFirstPause = absl::Milliseconds(500);
constexpr absl::Duration kLongestPause = absl::Seconds(30);

struct Decision {
  enum class Kind {
    kNothing,
    kForm,    // give `epoch` to all members
    kAdopt,   // members are in `epoch` already
    kGo,      // all may serve; `pod_index` is the one to tell, -1: all
    kAbort,   // `ending.epoch` is over for all
    kFence,   // tell the member `pod_index` that its epoch, `epoch`, is over
    kReblame  // the last ending has a better explanation
  };
  Kind kind = Kind::kNothing;
  int32_t epoch = 0;
  int32_t pod_index = 0;
  Ending ending = {};
};

// `floor`: no epoch below it is given; grows with time.
Decision Coordinate(const GroupState& group, AwakeTime now, int32_t floor);

// The state after the decision has been carried out.
void Apply(const Decision& decision, AwakeTime now, GroupState& group);

// What the group waits for, for a person: "waits for pod 1 of 3"; empty when for nothing.
std::string WaitsFor(const GroupState& group, AwakeTime now);

}  // namespace rempart::op
