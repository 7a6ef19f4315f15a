// SPDX-License-Identifier: Apache-2.0
// How a process learns that it shall end.
#pragma once

#include <csignal>

namespace rempart {

// SIGTERM and SIGINT, for sigwait.
sigset_t EndSignals();

// Before any thread starts, so that all inherit it: EndSignals, and `also` unless it is 0, are kept
// for whoever waits for them; SIGPIPE is ignored. Returns what is kept.
sigset_t BlockEndSignals(int also = 0);

}  // namespace rempart
