// SPDX-License-Identifier: Apache-2.0
// A listening socket of one shard and the connections it accepted. Called by the shard's thread.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "router/http/connection.h"

namespace rempart::router {

// "host:port" with an IP address or localhost as host. InvalidArgument naming `field`.
absl::StatusOr<boost::asio::ip::tcp::endpoint> ParseEndpoint(const std::string& field,
                                                             const std::string& address);

// Whether several sockets of this process share the port.
enum class PortUse { kAlone, kShared };

// Unavailable when the address is in use, PermissionDenied when the port is not ours to open.
absl::StatusOr<boost::asio::ip::tcp::acceptor> OpenAcceptor(
    boost::asio::io_context& shard, const std::string& field,
    const boost::asio::ip::tcp::endpoint& endpoint, PortUse use);

class Listener {
 public:
  Listener(boost::asio::io_context& shard, boost::asio::ip::tcp::acceptor acceptor,
           ConnectionOptions options, int32_t max_connections, Handler handler);

  void Run() { Accept(); }
  // From now on every connection closes after its answer.
  void KeepNone();
  // No new connections; those at rest close, the others after their answer.
  void Stop();
  // Closes what is left.
  void Abort();

  int32_t connection_count() const { return static_cast<int32_t>(connections_.size()); }

 private:
  void Accept();
  void Admit(boost::asio::ip::tcp::socket socket);

  boost::asio::io_context& shard_;
  boost::asio::ip::tcp::acceptor acceptor_;
  boost::asio::steady_timer retry_;
  const ConnectionOptions options_;
  const int32_t max_connections_;
  const Handler handler_;
  bool keeps_ = true;
  bool stopping_ = false;
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections_;
};

}  // namespace rempart::router
