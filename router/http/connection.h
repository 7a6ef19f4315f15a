// SPDX-License-Identifier: Apache-2.0
// One client connection: reads a request, lets a handler answer, reads the next. Owned by its own
// pending operations; called by its shard's thread alone.
// 1. One request at a time: what a client sends ahead waits, bounded, in the buffer.
// 2. While a request runs, one read is pending, so that a client that goes away is noticed at once;
//    its Exchange is destroyed then.
// 3. Writes are merged while one is in flight; a client that does not read loses its request at
//    max_unsent_bytes or after write_timeout.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "router/http/http_message.h"

namespace rempart::router {

// A request being answered; destroying it stops the work.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // Called once when the answer ends or the client went away; bytes are of the answer.
  virtual void OnEnd(bool client_left, uint64_t bytes_sent) = 0;
};

class Connection;
// Begins to answer through the connection, within the call or later.
using Handler = std::function<std::unique_ptr<Exchange>(HttpRequest, Connection&)>;

struct ConnectionOptions {
  HttpLimits limits;
  absl::Duration request_read_timeout = absl::Seconds(30);
  absl::Duration idle_timeout = absl::Seconds(75);
  absl::Duration write_timeout = absl::Seconds(30);
  size_t max_unsent_bytes = 4 << 20;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using Error = boost::system::error_code;

  Connection(Socket socket, const ConnectionOptions& options, Handler handler,
             std::function<void(Connection*)> on_gone);
  ~Connection();

  void Run() { AwaitRequest(); }
  // The next answer that begins is the last, and says so. One whose head has gone out promised to
  // keep the connection.
  void CloseAfterAnswer() { next_is_last_ = true; }
  // After the answer in progress, or at once when there is none.
  void CloseWhenIdle();
  // At once.
  void Abort();

  // --- for the handler: either Reply, or BeginStream, SendEvent..., EndStream -------------------
  void Reply(const HttpReply& reply);
  void BeginStream(const HttpReply& head);  // its body is not used
  void SendEvent(absl::string_view text);
  // `keep` false: the connection closes, which tells the client that something went wrong.
  enum class StreamEnd { kKeep, kClose };
  void EndStream(StreamEnd end);

 private:
  enum class Phase { kIdle, kReading, kServing, kLingering, kGone };

  void AwaitRequest();
  void WatchClient();
  void OnWatched(Error error, size_t bytes);
  void ReadHeader();
  void ReadBody();
  void OnRequest(Error error);
  void Refuse(int status);
  void Append(absl::string_view text);
  void WriteNext();
  void FinishExchange();
  void Linger();
  void Gone(bool client_left);
  void ExpireIn(absl::Duration duration);
  void OnExpired();

  Socket socket_;
  const ConnectionOptions& options_;
  const Handler handler_;
  const std::function<void(Connection*)> on_gone_;
  boost::asio::steady_timer timer_;
  uint64_t timer_generation_ = 0;

  Phase phase_ = Phase::kIdle;
  boost::beast::flat_buffer buffer_;
  std::unique_ptr<RequestParser> parser_;
  std::unique_ptr<Exchange> exchange_;
  bool watching_ = false;
  bool timed_out_ = false;
  bool next_is_last_ = false;
  bool close_after_ = false;
  bool http_1_0_ = false;
  bool answer_complete_ = false;
  bool abort_posted_ = false;

  std::string unsent_;   // not yet given to the socket
  std::string sending_;  // the write in flight, from sent_ on
  size_t sent_ = 0;
  bool writing_ = false;
  uint64_t bytes_sent_ = 0;
};

}  // namespace rempart::router
