// SPDX-License-Identifier: Apache-2.0
// Two kinds of rules before the machine's own routing: networks that stay reachable, and nothing
// else. Over a netlink socket; what the machine itself is (loopback, its own addresses) is decided
// before any rule of ours and stays reachable.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rempart::worker {

struct Network {
  int family = 0;       // AF_INET, AF_INET6
  std::string address;  // its bytes
  int prefix_length = 0;
};

// "10.244.1.0/24", "fd00::/64". InvalidArgument names what is wrong.
absl::StatusOr<Network> ParseNetwork(const std::string& text);

// Until Mend, of this process or another one. PermissionDenied without CAP_NET_ADMIN.
absl::Status CutAllBut(const std::vector<Network>& kept);
// OK when there is nothing to mend.
absl::Status MendCut();

}  // namespace rempart::worker
