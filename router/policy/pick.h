// SPDX-License-Identifier: Apache-2.0
// Which group gets a request: a pure function over plain data, called by a shard's thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rempart::router {

// What a shard knows of one group that serves the model.
struct GroupView {
  std::string group_name;
  bool connected = false;  // Welcome received, stream open
  bool ready = false;      // by the worker's own word
  bool draining = false;   // by the worker's or the topology's word
  int32_t running = 0;     // as the worker last reported
  int32_t waiting = 0;
  int64_t queued_prefill_tokens = 0;
  // Sent by this shard and not yet in the figures above.
  int32_t starts_unseen = 0;
  // It has never lost requests, or has served for a while since it did.
  bool steady = true;
};

struct EndpointSnapshot {
  std::vector<GroupView> groups;
};

struct RequestTraits {
  // Groups that already failed this request; taken only when there is no other.
  std::vector<std::string> avoid;
  // Another loss would end it: it waits for a steady group.
  bool last_chance = false;
};

// Index of the chosen group; nullopt: none can take a request now.
struct Decision {
  std::optional<size_t> group_index;
};

// The least loaded group: fewest sequences running, waiting or on their way, then fewest prompt
// tokens queued, then the first. A group that failed this request is the last resort, and one that
// is not steady gets no request on its last chance.
Decision Pick(const EndpointSnapshot& snapshot, const RequestTraits& traits);

}  // namespace rempart::router
