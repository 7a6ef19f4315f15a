// SPDX-License-Identifier: Apache-2.0
// Addresses in flags and configurations as Boost takes them.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rempart {

// "host:port" with an IP address, one of version 6 in brackets, or localhost as host.
// InvalidArgument naming `field`, with its usual port as an example.
absl::StatusOr<boost::asio::ip::tcp::endpoint> ParseEndpoint(absl::string_view field,
                                                             const std::string& address,
                                                             int usual_port);

}  // namespace rempart
