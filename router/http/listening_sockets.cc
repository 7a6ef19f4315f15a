// SPDX-License-Identifier: Apache-2.0
#include "router/http/listening_sockets.h"

#include <sys/socket.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/health/endpoint.h"
#include "common/status_macros.h"

namespace rempart::router {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using Error = boost::system::error_code;
using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;

// Whether several sockets of this process share the port.
enum class PortUse { kAlone, kShared };

absl::StatusOr<Tcp::acceptor> OpenAcceptor(asio::io_context& context, const std::string& field,
                                           const Tcp::endpoint& endpoint, PortUse use) {
  Tcp::acceptor acceptor(context);
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

}  // namespace

absl::StatusOr<std::vector<int>> OpenListeningSockets(const RouterSettings& settings) {
  asio::io_context context;
  std::vector<Tcp::acceptor> acceptors;
  ASSIGN_OR_RETURN(Tcp::endpoint endpoint,
                   ParseEndpoint("httpAddress", settings.http_address, 8080));
  const PortUse use = settings.shards > 1 ? PortUse::kShared : PortUse::kAlone;
  if (use == PortUse::kShared && endpoint.port() != 0) {
    // A shared port would let a second router slip in beside us; this one says that it is taken.
    RETURN_IF_ERROR(OpenAcceptor(context, "httpAddress", endpoint, PortUse::kAlone).status());
  }
  for (int32_t shard = 0; shard < settings.shards; ++shard) {
    ASSIGN_OR_RETURN(Tcp::acceptor acceptor, OpenAcceptor(context, "httpAddress", endpoint, use));
    endpoint = acceptor.local_endpoint();
    acceptors.push_back(std::move(acceptor));
  }
  if (!settings.health_address.empty()) {
    ASSIGN_OR_RETURN(Tcp::endpoint health,
                     ParseEndpoint("healthAddress", settings.health_address, 9091));
    ASSIGN_OR_RETURN(Tcp::acceptor acceptor,
                     OpenAcceptor(context, "healthAddress", health, PortUse::kAlone));
    acceptors.push_back(std::move(acceptor));
  }
  std::vector<int> descriptors;
  for (Tcp::acceptor& acceptor : acceptors) descriptors.push_back(acceptor.release());
  return descriptors;
}

absl::StatusOr<Tcp::acceptor> AcceptorOf(asio::io_context& shard, int descriptor) {
  int listens = 0;
  int family = 0;
  socklen_t size = sizeof(int);
  if (getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0 ||
      getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listeners: descriptor ", descriptor, " is no listening socket"));
  }
  Tcp::acceptor acceptor(shard);
  Error error;
  acceptor.assign(family == AF_INET6 ? Tcp::v6() : Tcp::v4(), descriptor, error);
  if (error) return absl::InternalError(absl::StrCat("listening socket: ", error.message()));
  return acceptor;
}

}  // namespace rempart::router
