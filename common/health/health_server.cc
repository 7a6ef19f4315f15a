// SPDX-License-Identifier: Apache-2.0
#include "common/health/health_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/health/endpoint.h"
#include "common/status_macros.h"

namespace rempart {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Tcp = asio::ip::tcp;
using Error = boost::system::error_code;

constexpr auto kConnectionTimeout = std::chrono::seconds(5);
constexpr size_t kMaxRequestBytes = 8192;
constexpr int kUsualPort = 9090;  // that of workers

// One connection, kept alive by its own pending operation.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Tcp::socket socket, const HealthHandlers* handlers)
      : stream_(std::move(socket)), handlers_(handlers) {}

  void Run() {
    stream_.expires_after(kConnectionTimeout);
    parser_.header_limit(kMaxRequestBytes);
    parser_.body_limit(kMaxRequestBytes);
    http::async_read(stream_, buffer_, parser_, [self = shared_from_this()](Error error, size_t) {
      if (!error) self->Answer();
    });
  }

 private:
  void Answer() {
    const std::string target(parser_.get().target());
    response_.version(parser_.get().version());
    response_.keep_alive(false);
    response_.set(http::field::content_type, "application/json");
    HealthReply reply{404, "{\"error\":\"try /healthz, /readyz or /metrics\"}\n"};
    if (parser_.get().method() != http::verb::get) {
      reply = {405, "{\"error\":\"only GET\"}\n"};
    } else if (target == "/healthz") {
      reply = handlers_->live();
    } else if (target == "/readyz") {
      reply = handlers_->ready();
    } else if (target == "/metrics") {
      reply = {200, handlers_->metrics()};
      response_.set(http::field::content_type, "text/plain; version=0.0.4");
    }
    response_.result(static_cast<unsigned>(reply.code));
    response_.body() = std::move(reply.body);
    response_.prepare_payload();
    http::async_write(stream_, response_, [self = shared_from_this()](Error, size_t) {
      Error ignored;
      self->stream_.socket().shutdown(Tcp::socket::shutdown_both, ignored);
    });
  }

  beast::tcp_stream stream_;
  const HealthHandlers* const handlers_;
  beast::flat_buffer buffer_{kMaxRequestBytes};
  http::request_parser<http::string_body> parser_;
  http::response<http::string_body> response_;
};

}  // namespace

struct HealthServer::Listener {
  explicit Listener(HealthHandlers h) : handlers(std::move(h)), acceptor(context) {}

  void Accept() {
    acceptor.async_accept([this](Error error, Tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (!error) std::make_shared<Session>(std::move(socket), &handlers)->Run();
      Accept();
    });
  }

  const HealthHandlers handlers;
  asio::io_context context{1};
  Tcp::acceptor acceptor;
};

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const std::string& address,
                                                                  HealthHandlers handlers) {
  ASSIGN_OR_RETURN(Tcp::endpoint endpoint, ParseEndpoint("health_address", address, kUsualPort));
  auto listener = std::make_unique<Listener>(std::move(handlers));
  Error error;
  listener->acceptor.open(endpoint.protocol(), error);
  if (!error) listener->acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error) listener->acceptor.bind(endpoint, error);
  if (!error) listener->acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on health_address ", address, ": ", error.message()));
  }
  return std::unique_ptr<HealthServer>(new HealthServer(std::move(listener)));
}

HealthServer::HealthServer(std::unique_ptr<Listener> listener)
    : listener_(std::move(listener)), thread_([this] {
        listener_->Accept();
        listener_->context.run();
      }) {}

HealthServer::~HealthServer() {
  listener_->context.stop();
  thread_.join();
}

int HealthServer::port() const { return listener_->acceptor.local_endpoint().port(); }

absl::Status Probe(const std::string& address, const std::string& what, absl::Duration timeout) {
  if (what != "ready" && what != "live") {
    return absl::InvalidArgumentError(absl::StrCat("\"", what, "\" is neither ready nor live"));
  }
  ASSIGN_OR_RETURN(Tcp::endpoint endpoint, ParseEndpoint("--address", address, kUsualPort));
  asio::io_context context;
  beast::tcp_stream stream(context);
  stream.expires_after(absl::ToChronoMilliseconds(timeout));
  http::request<http::empty_body> request(http::verb::get, what == "ready" ? "/readyz" : "/healthz",
                                          11);
  request.set(http::field::host, address);
  http::response<http::string_body> response;
  beast::flat_buffer buffer;
  Error result;
  stream.async_connect(endpoint, [&](Error connected) {
    result = connected;
    if (connected) return;
    http::async_write(stream, request, [&](Error written, size_t) {
      result = written;
      if (written) return;
      http::async_read(stream, buffer, response, [&](Error read, size_t) { result = read; });
    });
  });
  context.run();
  if (result) return absl::UnavailableError(absl::StrCat(address, ": ", result.message()));
  if (response.result_int() == 200) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(address, " answers ", response.result_int(), ": ", response.body()));
}

}  // namespace rempart
