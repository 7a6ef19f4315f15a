// SPDX-License-Identifier: Apache-2.0
#include "router/http/listener.h"

#include <sys/socket.h>

#include <utility>

#include "common/log.h"

namespace rempart::router {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using Error = boost::system::error_code;

// After accept failed for want of file descriptors or memory.
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);

}  // namespace

Listener::Listener(asio::io_context& shard, Tcp::acceptor acceptor, ConnectionOptions options,
                   int32_t max_connections, Handler handler)
    : shard_(shard),
      acceptor_(std::move(acceptor)),
      retry_(shard),
      options_(options),
      max_connections_(max_connections),
      handler_(std::move(handler)) {}

void Listener::Accept() {
  acceptor_.async_accept(shard_, [this](Error error, Tcp::socket socket) {
    if (stopping_ || error == asio::error::operation_aborted) return;
    if (!error) {
      Admit(std::move(socket));
      return Accept();
    }
    LogWarning("http", "cannot accept", {{"reason", error.message()}});
    retry_.expires_after(kAcceptRetry);
    retry_.async_wait([this](Error cancelled) {
      if (!cancelled && !stopping_) Accept();
    });
  });
}

void Listener::Admit(Tcp::socket socket) {
  if (connection_count() >= max_connections_) {
    LogWarning("http", "connection refused: too many are open", {{"open", connection_count()}});
    return;  // closes it
  }
  const auto connection =
      std::make_shared<Connection>(std::move(socket), options_, handler_,
                                   [this](Connection* gone) { connections_.erase(gone); });
  connections_[connection.get()] = connection;
  if (!keeps_) connection->CloseAfterAnswer();
  connection->Run();
}

void Listener::KeepNone() {
  keeps_ = false;
  for (const auto& [key, connection] : connections_) connection->CloseAfterAnswer();
}

void Listener::Stop() {
  if (std::exchange(stopping_, true)) return;
  Error ignored;
  // The supervisor has the same socket open: closed here alone, it would let clients wait for
  // nobody.
  shutdown(acceptor_.native_handle(), SHUT_RDWR);
  acceptor_.close(ignored);
  retry_.cancel();
  const auto open = connections_;
  for (const auto& [key, connection] : open) connection->CloseWhenIdle();
}

void Listener::Abort() {
  Stop();
  const auto open = connections_;
  for (const auto& [key, connection] : open) connection->Abort();
}

}  // namespace rempart::router
