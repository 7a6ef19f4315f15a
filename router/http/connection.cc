// SPDX-License-Identifier: Apache-2.0
#include "router/http/connection.h"

#include <boost/asio/post.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/rfc7230.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/api/openai/answer.h"

namespace rempart::router {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr size_t kReadBytes = 64 << 10;
// What a client may send ahead of an answer.
constexpr size_t kMaxAheadBytes = 64 << 10;
// How long a client gets to take the last answer in before the socket is closed under it.
constexpr absl::Duration kLingerTime = absl::Seconds(2);

ApiError ErrorOf(int status) {
  ApiError error;
  error.status = status;
  error.code = "bad_request";
  error.message = "The request is not valid HTTP/1.1.";
  if (status == 408) {
    error.code = "request_timeout";
    error.message = "The request took too long to arrive.";
  } else if (status == 413) {
    error.code = "request_too_large";
    error.message = "The body of the request exceeds this server's limit.";
  } else if (status == 431) {
    error.code = "headers_too_large";
    error.message = "The headers of the request exceed this server's limit.";
  }
  return error;
}

}  // namespace

Connection::Connection(Socket socket, const ConnectionOptions& options, Handler handler,
                       std::function<void(Connection*)> on_gone)
    : socket_(std::move(socket)),
      options_(options),
      handler_(std::move(handler)),
      on_gone_(std::move(on_gone)),
      timer_(socket_.get_executor()) {
  Error ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
}

Connection::~Connection() = default;

void Connection::AwaitRequest() {
  phase_ = Phase::kIdle;
  if (buffer_.size() > 0) {
    // Sent ahead. A read that is still watching has to let go of the buffer first.
    if (!watching_) return ReadHeader();
    Error ignored;
    socket_.cancel(ignored);
    return;
  }
  ExpireIn(options_.idle_timeout);
  WatchClient();
}

void Connection::WatchClient() {
  if (watching_ || buffer_.size() >= kMaxAheadBytes) return;
  watching_ = true;
  socket_.async_read_some(
      buffer_.prepare(kReadBytes),
      [self = shared_from_this()](Error error, size_t bytes) { self->OnWatched(error, bytes); });
}

void Connection::OnWatched(Error error, size_t bytes) {
  watching_ = false;
  buffer_.commit(bytes);
  switch (phase_) {
    case Phase::kIdle:
      if (error && (error != asio::error::operation_aborted || buffer_.size() == 0)) {
        return Gone(false);
      }
      return ReadHeader();
    case Phase::kServing:
      if (error) return Gone(true);
      return WatchClient();
    case Phase::kLingering:
      if (error) return Gone(false);
      buffer_.consume(buffer_.size());
      return WatchClient();
    case Phase::kReading:
    case Phase::kGone:
      return;
  }
}

void Connection::ReadHeader() {
  phase_ = Phase::kReading;
  ExpireIn(options_.request_read_timeout);
  parser_ = NewRequestParser(options_.limits);
  buffer_.reserve(kReadBytes);
  http::async_read_header(socket_, buffer_, *parser_,
                          [self = shared_from_this()](Error error, size_t) {
                            if (error) return self->OnRequest(error);
                            self->ReadBody();
                          });
}

void Connection::ReadBody() {
  const auto& message = parser_->get();
  if (!parser_->is_done() && message.version() >= 11 &&
      boost::beast::iequals(message[http::field::expect], "100-continue")) {
    Append("HTTP/1.1 100 Continue\r\n\r\n");
  }
  http::async_read(socket_, buffer_, *parser_,
                   [self = shared_from_this()](Error error, size_t) { self->OnRequest(error); });
}

void Connection::OnRequest(Error error) {
  if (phase_ != Phase::kReading) return;
  ++timer_generation_;
  timer_.cancel();
  if (error && timed_out_) return Refuse(408);
  if (error) {
    const bool malformed = error.category() == http::make_error_code(http::error{}).category() &&
                           error != http::error::end_of_stream &&
                           error != http::error::partial_message;
    return malformed ? Refuse(StatusOfParseError(error)) : Gone(false);
  }
  phase_ = Phase::kServing;
  http_1_0_ = parser_->get().version() < 11;
  if (!parser_->keep_alive()) close_after_ = true;
  HttpRequest request = RequestFrom(*parser_);
  parser_.reset();
  bytes_sent_ = 0;
  exchange_ = handler_(std::move(request), *this);
  if (phase_ == Phase::kServing) WatchClient();
}

void Connection::Refuse(int status) {
  phase_ = Phase::kServing;
  close_after_ = true;
  HttpReply reply;
  reply.status = status;
  reply.body = openai::ErrorBody(ErrorOf(status));
  Reply(reply);
}

void Connection::Reply(const HttpReply& reply) {
  if (next_is_last_) close_after_ = true;
  auto headers = reply.headers;
  headers.emplace_back("Content-Type", reply.content_type);
  headers.emplace_back("Content-Length", absl::StrCat(reply.body.size()));
  headers.emplace_back("Connection", close_after_ ? "close" : "keep-alive");
  answer_complete_ = true;
  Append(HeaderText(reply.status, headers) + reply.body);
}

void Connection::BeginStream(const HttpReply& head) {
  if (next_is_last_) close_after_ = true;
  auto headers = head.headers;
  headers.emplace_back("Content-Type", head.content_type);
  if (http_1_0_) {
    close_after_ = true;  // the end of the connection is the end of the body
  } else {
    headers.emplace_back("Transfer-Encoding", "chunked");
  }
  headers.emplace_back("Connection", close_after_ ? "close" : "keep-alive");
  Append(HeaderText(head.status, headers));
}

void Connection::SendEvent(absl::string_view text) {
  if (text.empty() || phase_ != Phase::kServing) return;
  if (unsent_.size() > options_.max_unsent_bytes) {
    // Not from within the call: the caller is still at work.
    if (!std::exchange(abort_posted_, true)) {
      asio::post(socket_.get_executor(), [self = shared_from_this()] { self->Gone(true); });
    }
    return;
  }
  if (http_1_0_) return Append(text);
  Append(absl::StrCat(absl::Hex(text.size()), "\r\n", text, "\r\n"));
}

void Connection::EndStream(StreamEnd end) {
  if (end == StreamEnd::kClose) close_after_ = true;
  answer_complete_ = true;
  Append(http_1_0_ ? "" : "0\r\n\r\n");
}

void Connection::Append(absl::string_view text) {
  if (phase_ == Phase::kGone) return;
  unsent_.append(text.data(), text.size());
  WriteNext();
}

void Connection::WriteNext() {
  if (writing_ || phase_ == Phase::kGone) return;
  if (sent_ == sending_.size()) {
    sending_ = std::exchange(unsent_, {});
    sent_ = 0;
  }
  if (sending_.empty()) {
    // Nothing left, possibly of an answer whose end had no bytes.
    if (answer_complete_) {
      asio::post(socket_.get_executor(), [self = shared_from_this()] { self->FinishExchange(); });
    }
    return;
  }
  writing_ = true;
  if (phase_ == Phase::kServing) ExpireIn(options_.write_timeout);
  socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                           [self = shared_from_this()](Error error, size_t bytes) {
                             self->writing_ = false;
                             if (self->phase_ == Phase::kGone) return;
                             if (error) return self->Gone(true);
                             self->sent_ += bytes;
                             self->bytes_sent_ += bytes;
                             const bool more =
                                 self->sent_ < self->sending_.size() || !self->unsent_.empty();
                             if (more) return self->WriteNext();
                             self->sending_.clear();
                             self->sent_ = 0;
                             if (self->phase_ == Phase::kServing) {
                               ++self->timer_generation_;
                               self->timer_.cancel();
                             }
                             if (self->answer_complete_) self->FinishExchange();
                           });
}

void Connection::FinishExchange() {
  if (phase_ != Phase::kServing || !answer_complete_) return;
  answer_complete_ = false;
  if (exchange_ != nullptr) std::exchange(exchange_, nullptr)->OnEnd(false, bytes_sent_);
  close_after_ ? Linger() : AwaitRequest();
}

void Connection::Linger() {
  phase_ = Phase::kLingering;
  Error ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  buffer_.consume(watching_ ? 0 : buffer_.size());
  ExpireIn(kLingerTime);
  WatchClient();
}

void Connection::CloseWhenIdle() {
  close_after_ = true;
  if (phase_ == Phase::kIdle) Gone(false);
}

void Connection::Abort() { Gone(false); }

void Connection::Gone(bool client_left) {
  if (phase_ == Phase::kGone) return;
  const std::shared_ptr<Connection> self = shared_from_this();
  phase_ = Phase::kGone;
  ++timer_generation_;
  timer_.cancel();
  if (exchange_ != nullptr) std::exchange(exchange_, nullptr)->OnEnd(client_left, bytes_sent_);
  Error ignored;
  socket_.close(ignored);
  on_gone_(this);
}

void Connection::ExpireIn(absl::Duration duration) {
  const uint64_t generation = ++timer_generation_;
  timer_.expires_after(absl::ToChronoNanoseconds(duration));
  timer_.async_wait([self = shared_from_this(), generation](Error error) {
    if (!error && generation == self->timer_generation_) self->OnExpired();
  });
}

void Connection::OnExpired() {
  switch (phase_) {
    case Phase::kReading: {
      timed_out_ = true;
      Error ignored;
      socket_.cancel(ignored);
      return;
    }
    case Phase::kServing:
      return Gone(true);
    case Phase::kIdle:
    case Phase::kLingering:
    case Phase::kGone:
      return Gone(false);
  }
}

}  // namespace rempart::router
