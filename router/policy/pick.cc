// SPDX-License-Identifier: Apache-2.0
#include "router/policy/pick.h"

#include <algorithm>
#include <tuple>

namespace rempart::router {

Decision Pick(const EndpointSnapshot& snapshot, const RequestTraits& traits) {
  Decision decision;
  std::tuple<bool, int64_t, int64_t> best;
  for (size_t i = 0; i < snapshot.groups.size(); ++i) {
    const GroupView& group = snapshot.groups[i];
    if (!group.connected || !group.ready || group.draining) continue;
    if (traits.last_chance && !group.steady) continue;
    const bool failed_before =
        std::find(traits.avoid.begin(), traits.avoid.end(), group.group_name) != traits.avoid.end();
    const int64_t sequences = int64_t{group.running} + group.waiting + group.starts_unseen;
    const auto cost = std::make_tuple(failed_before, sequences, group.queued_prefill_tokens);
    if (decision.group_index && cost >= best) continue;
    decision.group_index = i;
    best = cost;
  }
  return decision;
}

}  // namespace rempart::router
