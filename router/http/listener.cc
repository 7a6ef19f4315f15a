// SPDX-License-Identifier: Apache-2.0
#include "router/http/listener.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace rempart::router {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using Error = boost::system::error_code;
using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;

// After accept failed for want of file descriptors or memory.
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);

}  // namespace

absl::StatusOr<Tcp::endpoint> ParseEndpoint(const std::string& field, const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  Error error;
  asio::ip::address host;
  if (colon != std::string::npos) {
    std::string name = address.substr(0, colon);
    if (name == "localhost") name = "127.0.0.1";
    if (name.size() > 2 && name.front() == '[') name = name.substr(1, name.size() - 2);
    host = asio::ip::make_address(name, error);
  }
  if (colon == std::string::npos || error || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is \"", address, "\": it must be an address such as 127.0.0.1:8080"));
  }
  return Tcp::endpoint(host, static_cast<uint16_t>(port));
}

absl::StatusOr<Tcp::acceptor> OpenAcceptor(asio::io_context& shard, const std::string& field,
                                           const Tcp::endpoint& endpoint, PortUse use) {
  Tcp::acceptor acceptor(shard);
  Error error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error && use == PortUse::kShared) acceptor.set_option(ReusePort(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return acceptor;
  const std::string message =
      absl::StrCat("cannot listen on ", field, " ", endpoint.address().to_string(), ":",
                   endpoint.port(), ": ", error.message());
  if (error == asio::error::access_denied) return absl::PermissionDeniedError(message);
  return absl::UnavailableError(message);
}

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
