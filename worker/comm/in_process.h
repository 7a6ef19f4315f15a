// SPDX-License-Identifier: Apache-2.0
// The communicators of a group whose ranks are threads of one process.
#pragma once

#include <memory>
#include <vector>

#include "worker/comm/mesh_communicator.h"

namespace rempart::worker {

// One for each rank; each may move to a thread of its own. 1 <= size <= kMaxRanks.
std::vector<std::unique_ptr<Communicator>> CreateInProcess(int size,
                                                           const CommunicatorOptions& options);

}  // namespace rempart::worker
