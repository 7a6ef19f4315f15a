// SPDX-License-Identifier: Apache-2.0
#include "router/endpoints/attach_stream.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <deque>
#include <utility>

#include "common/mutex.h"
#include "proto/worker/v1/worker.grpc.pb.h"

namespace rempart::router {
namespace {

namespace v1 = worker::v1;
constexpr int32_t kProtocol = 1;
constexpr int kMaxFrameBytes = 64 << 20;

}  // namespace

// Keeps itself alive from Begin to OnDone. One hold on the stream lasts until a read has failed, so
// that reads and writes may start from the shard's thread.
class AttachReactor : public grpc::ClientBidiReactor<v1::ToWorker, v1::FromWorker>,
                      public std::enable_shared_from_this<AttachReactor> {
 public:
  AttachReactor(boost::asio::io_context& shard, AttachEvents events)
      : shard_(shard), work_(shard.get_executor()), events_(std::move(events)) {}

  void Begin(std::shared_ptr<grpc::Channel> channel, const std::string& router_id) {
    self_ = shared_from_this();
    stub_ = v1::Worker::NewStub(channel);
    stub_->async()->Attach(&context_, this);
    AddHold();
    StartRead(&incoming_);
    v1::ToWorker hello;
    hello.mutable_hello()->set_router_id(router_id);
    hello.mutable_hello()->set_protocol(kProtocol);
    Send(std::move(hello));
    StartCall();
  }
  // Called instead of Begin when there is nothing to dial.
  void Fail(absl::Status status) {
    boost::asio::post(shard_, [self = shared_from_this(), status] { self->TellClosed(status); });
  }

  void Send(v1::ToWorker message) {
    MutexLock lock(&mu_);
    if (closed_) return;
    outbox_.push_back(std::move(message));
    WriteNext();
  }
  // Shard's thread.
  void Close() {
    muted_ = true;
    context_.TryCancel();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      boost::asio::post(shard_, [self = shared_from_this()] { self->HandleFrame(); });
      return;
    }
    {
      MutexLock lock(&mu_);
      closed_ = true;
      outbox_.clear();
    }
    RemoveHold();
  }
  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    writing_ = false;
    if (ok && !closed_) WriteNext();
  }
  void OnDone(const grpc::Status& status) override {
    const absl::Status why(static_cast<absl::StatusCode>(status.error_code()),
                           status.error_message());
    boost::asio::post(shard_, [self = std::move(self_), why] {
      self->TellClosed(why);
      self->work_.reset();
    });
  }

 private:
  void HandleFrame() {
    if (!muted_) events_.on_frame(incoming_);
    incoming_.Clear();
    StartRead(&incoming_);
  }
  void TellClosed(const absl::Status& status) {
    if (std::exchange(muted_, true)) return;
    events_.on_closed(status);
  }
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || outbox_.empty()) return;
    outgoing_ = std::move(outbox_.front());
    outbox_.pop_front();
    writing_ = true;
    StartWrite(&outgoing_);
  }

  boost::asio::io_context& shard_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::shared_ptr<AttachReactor> self_;
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  v1::FromWorker incoming_;  // the read's, then the shard thread's until the next read

  // Owned by the shard's thread.
  const AttachEvents events_;
  bool muted_ = false;

  Mutex mu_;
  v1::ToWorker outgoing_ ABSL_GUARDED_BY(mu_);  // while writing_: gRPC's
  std::deque<v1::ToWorker> outbox_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

AttachStream::AttachStream(boost::asio::io_context& shard, const TlsConfig& tls,
                           const std::string& address, const std::string& router_id,
                           AttachEvents events)
    : reactor_(std::make_shared<AttachReactor>(shard, std::move(events))) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxReceiveMessageSize(kMaxFrameBytes);
  auto channel = Dial(tls, address, arguments);
  if (channel.ok()) {
    reactor_->Begin(*std::move(channel), router_id);
  } else {
    reactor_->Fail(channel.status());
  }
}

void AttachStream::Send(v1::ToWorker message) {
  if (reactor_ != nullptr) reactor_->Send(std::move(message));
}

void AttachStream::Close() {
  if (reactor_ != nullptr) std::exchange(reactor_, nullptr)->Close();
}

}  // namespace rempart::router
