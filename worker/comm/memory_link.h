// SPDX-License-Identifier: Apache-2.0
// A link between two ranks of one process: the receiver copies straight from the sender's memory.
#pragma once

#include <memory>
#include <utility>

#include "worker/comm/link.h"
#include "worker/comm/waker.h"

namespace rempart::worker {

// Both ends of a link between `rank` and `peer`; the first is rank's.
std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> CreateMemoryLink(
    int rank, std::shared_ptr<Waker> rank_waker, int peer, std::shared_ptr<Waker> peer_waker);

}  // namespace rempart::worker
