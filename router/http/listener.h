// SPDX-License-Identifier: Apache-2.0
// A listening socket of one shard and the connections it accepted. Called by the shard's thread.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <unordered_map>

#include "router/http/connection.h"

namespace rempart::router {

class Listener {
 public:
  Listener(boost::asio::io_context& shard, boost::asio::ip::tcp::acceptor acceptor,
           ConnectionOptions options, int32_t max_connections, Handler handler);

  void Run() { Accept(); }
  // From now on every connection closes after its answer.
  void KeepNone();
  // No new connections, in no process that shares the socket; those at rest close, the others after
  // their answer.
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
