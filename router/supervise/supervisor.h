// SPDX-License-Identifier: Apache-2.0
// Keeps a process serving: the supervisor holds the listening sockets and does nothing else; the
// process that serves inherits them. When that one crashes, the next takes over within milliseconds
// and no connection was refused: what came meanwhile has waited in the kernel's queue. What was
// being answered is lost with its connection, as with any crash.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace rempart::router {

// How often a process may crash before its supervisor gives up, for whoever started that to see it
// and to wait in between.
class RestartBudget {
 public:
  // Notes a crash; false when it is the sixth within a minute.
  bool Spend(absl::Time now);

 private:
  std::vector<absl::Time> crashes_;
};

// Runs this very program with the arguments `command(restarts)`, its name first, which inherits
// `descriptors`, for as long as it ends by a signal; `restarts` counts from 0. Passes SIGTERM and
// SIGINT on. Returns the exit status that this process is to have: that of a child that exited by
// itself; 1 when it crashed too often, or while it was stopping. The child dies with this process.
// To be called before any thread is started.
int Supervise(const std::function<std::vector<std::string>(int restarts)>& command,
              const std::vector<int>& descriptors);

}  // namespace rempart::router
