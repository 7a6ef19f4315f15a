// SPDX-License-Identifier: Apache-2.0
// What a drill does to a node, from a helper pod on it that runs this program's image: a signal to
// the processes of one container, or the end of the node's traffic for a while. Every strike undoes
// itself when its time is over or SIGTERM comes. `rempart drill` (cli/drill/) follows the lines
// that it prints: "ready", "struck", "mended".
//
// Rights: a signal needs the host's process namespace and the worker's user, nothing else; a cut
// needs the host's network and CAP_NET_ADMIN.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rempart::worker {

struct Strike {
  enum class Kind {
    kKill,    // SIGKILL
    kFreeze,  // SIGSTOP, and SIGCONT at the end
    kCut      // nothing leaves the node or passes through it, but to `kept_networks`
  };
  Kind kind = Kind::kKill;
  std::string container_id = {};  // of a signal; 64 hex digits
  absl::Duration lasts = {};
  std::vector<std::string> kept_networks = {};  // "10.244.1.0/24": the pods of the node itself
};

// From the words after "strike": kill ID | freeze SECONDS ID | cut SECONDS [CIDR...].
absl::StatusOr<Strike> ParseStrike(const std::vector<std::string>& words);

// Processes whose control group belongs to the container, by what `proc_folder` ("/proc") says.
std::vector<int> ProcessesOf(const std::string& container_id, const std::string& proc_folder);

// Strikes, waits, mends; prints a line for each to standard output. SIGTERM and SIGINT are blocked
// in all threads by the caller.
absl::Status RunStrike(const Strike& strike);

}  // namespace rempart::worker
