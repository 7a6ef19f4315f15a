// SPDX-License-Identifier: Apache-2.0
// Which CPUs are near which memory, and where the ranks of a pod go on a machine that has several
// such nodes. Memory is placed by first touch: a system call that names the node (mbind) is closed
// to containers by the seccomp profiles that we run under, while binding a thread is not. So a
// rank's shard of the weights, and its KV cache, are first written by threads that are bound to the
// rank's node. On a machine of one node nothing is bound.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"

namespace rempart::worker {

struct NumaNode {
  int32_t id = 0;
  std::vector<int32_t> cpus;  // ascending
};

// CPUs that this process's threads may run on, ascending.
std::vector<int32_t> AllowedCpus();

// The nodes that have any of the `allowed` CPUs, with these CPUs, by id; empty where the system
// does not tell. Reads `root`/sys/devices/system/node; `root` is "" for the real one.
std::vector<NumaNode> ReadNumaNodes(const std::string& root, absl::Span<const int32_t> allowed);

// For each of `ranks` ranks with `threads` threads the node whose CPUs it has to itself, or shares
// with ranks that fit beside it: neighbours in rank are neighbours in place. Empty, which leaves
// everything to the system: a single node; a single rank, whose threads read all of the weights
// wherever they run; or a node that has fewer CPUs than its ranks have threads.
std::vector<NumaNode> PlaceRanks(const std::vector<NumaNode>& nodes, int32_t ranks,
                                 int32_t threads);

// From here on the calling thread, and threads that it makes, run on these CPUs alone; none: no
// change. A refusal (a sandbox may forbid it) costs speed only, and is not told.
void BindThisThread(absl::Span<const int32_t> cpus);

// Calls body() on a thread that is bound to `cpus`, so that what it first touches lies near them;
// on the caller's own where there are none. Returns when body() has.
void RunBound(absl::Span<const int32_t> cpus, absl::FunctionRef<void()> body);

}  // namespace rempart::worker
