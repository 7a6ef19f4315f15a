// SPDX-License-Identifier: Apache-2.0
// How many CPUs this process may really use.
#pragma once

#include <optional>
#include <string>

namespace rempart::worker {

// CPUs that the process's cgroup (v2 or v1) and the cgroups above it grant, as far as they are
// visible under `root`/sys/fs/cgroup; nothing where no quota is set. `root` is "" for the real one.
std::optional<double> CgroupCpuQuota(const std::string& root);

// The affinity mask's CPUs, capped by the quota rounded down; at least 1. More threads than the
// quota would be throttled together, which stalls every step.
int UsableCpuCount();

// Threads for a wish of `wanted`: never more than UsableCpuCount(), which 0 stands for.
int ThreadsFor(int wanted);

}  // namespace rempart::worker
