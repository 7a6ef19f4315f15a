// SPDX-License-Identifier: Apache-2.0
// The sockets that a router listens on. They are opened apart from the process that serves, because
// they outlive it when it crashes (router/supervise/supervisor.h).
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/config/router_config.h"

namespace rempart::router {

// Descriptors of listening sockets: one of the clients' address for each shard, then that of the
// health address when there is one. All or nothing: InvalidArgument, Unavailable when an address is
// in use, PermissionDenied when a port is not ours to open.
absl::StatusOr<std::vector<int>> OpenListeningSockets(const RouterSettings& settings);

// The acceptor of an open descriptor, which it then owns. InvalidArgument when it is no listening
// socket.
absl::StatusOr<boost::asio::ip::tcp::acceptor> AcceptorOf(boost::asio::io_context& shard,
                                                          int descriptor);

}  // namespace rempart::router
