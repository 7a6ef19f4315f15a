// SPDX-License-Identifier: Apache-2.0
// A worker group without a model: an Attach service on a unix socket whose answers are scripted by
// the prompt's text.
//   "count N"  N deltas "t0 ", "t1 "...; a resumed request goes on where the other group stopped
//   "hang"     one delta, then nothing until it is cancelled
//   "die N"    N deltas, then the stream breaks
//   "lose N"   N more deltas, then a Failure of code GROUP_LOST
//   "late"     one delta; once it is cancelled, a Failure of code GROUP_LOST
//   "overflow" a Failure of code CONTEXT_OVERFLOW
//   "drain"    a Failure of code DRAINING
//   "flood"    deltas of 64 KiB until it is cancelled
//   "wait"     one delta, then nothing until Release()
#pragma once

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/worker/v1/worker.grpc.pb.h"

namespace rempart::router {

class FakeWorker final : public worker::v1::Worker::Service {
 public:
  using Stream = grpc::ServerReaderWriter<worker::v1::FromWorker, worker::v1::ToWorker>;

  explicit FakeWorker(std::string group_name) : group_name_(std::move(group_name)) {
    static std::atomic<int> next_socket = 0;
    socket_ = absl::StrCat("/tmp/rempart_fake_worker_", getpid(), "_", ++next_socket, ".sock");
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeWorker() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    unlink(socket_.c_str());
  }

  std::string address() const { return "unix:" + socket_; }
  const std::string& group_name() const { return group_name_; }
  // Every Start that came, in order.
  std::vector<worker::v1::Start> starts() const {
    std::lock_guard lock(mu_);
    return starts_;
  }
  size_t cancel_count() const {
    std::lock_guard lock(mu_);
    return cancelled_.size();
  }
  // Tells every router that it is ready.
  void SayReady() {
    std::lock_guard lock(mu_);
    for (Line* line : lines_) SendStep(*line, {});
  }
  // What "die" and "drain" do happens once; afterwards the request is counted like any other.
  void Heal() { healthy_ = true; }
  // Lets the requests that "wait" end.
  void Release() { released_ = true; }

  grpc::Status Attach(grpc::ServerContext* context, Stream* stream) override {
    worker::v1::ToWorker message;
    if (!stream->Read(&message) || !message.has_hello()) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "the first message must be Hello"};
    }
    Line line(stream);
    worker::v1::FromWorker welcome;
    welcome.mutable_welcome()->set_protocol(1);
    welcome.mutable_welcome()->set_group_name(group_name_);
    line.Write(welcome);
    SendStep(line, {});
    {
      std::lock_guard lock(mu_);
      lines_.insert(&line);
    }
    std::vector<std::jthread> requests;
    while (stream->Read(&message)) {
      if (message.has_start()) {
        {
          std::lock_guard lock(mu_);
          starts_.push_back(message.start());
        }
        requests.emplace_back(
            [this, context, &line, start = message.start()] { Answer(*context, line, start); });
      } else if (message.has_cancel()) {
        std::lock_guard lock(mu_);
        cancelled_.insert(message.cancel().request_id());
      }
    }
    std::lock_guard lock(mu_);
    lines_.erase(&line);
    return grpc::Status::OK;
  }

 private:
  struct Line {
    explicit Line(Stream* to) : stream(to) {}
    Stream* stream;
    std::mutex mu;
    std::atomic<uint64_t> steps = 0;
    void Write(const worker::v1::FromWorker& frame) {
      std::lock_guard lock(mu);
      stream->Write(frame);
    }
  };

  static void SendStep(Line& line, const std::vector<worker::v1::Delta>& deltas) {
    worker::v1::FromWorker frame;
    for (const auto& delta : deltas) *frame.mutable_step()->add_deltas() = delta;
    frame.mutable_step()->mutable_load()->set_state(worker::v1::Load::READY);
    frame.mutable_step()->set_sequence_number(++line.steps);
    line.Write(frame);
  }

  bool IsCancelled(const grpc::ServerContext& context, uint64_t request_id) const {
    if (context.IsCancelled()) return true;
    std::lock_guard lock(mu_);
    return cancelled_.count(request_id) > 0;
  }

  static std::string PromptOf(const worker::v1::Start& start) {
    if (!start.has_chat()) return start.text();
    return start.chat().messages(start.chat().messages_size() - 1).content();
  }

  static worker::v1::Delta Token(const worker::v1::Start& start, int32_t index) {
    worker::v1::Delta delta;
    delta.set_request_id(start.request_id());
    delta.add_token_ids(index);
    delta.set_text(absl::StrCat("t", index, " "));
    if (index == start.resume_tokens_size()) delta.mutable_prompt()->set_prompt_tokens(7);
    return delta;
  }

  void Answer(grpc::ServerContext& context, Line& line, const worker::v1::Start& start) {
    const std::vector<std::string> words = absl::StrSplit(PromptOf(start), ' ');
    int32_t count = 1;
    if (words.size() > 1) (void)absl::SimpleAtoi(words[1], &count);
    const std::string verb = healthy_ && words[0] != "hang" ? "count" : words[0];
    if (verb == "overflow" || verb == "drain") return SendFailure(line, start, verb);
    if (verb == "flood") return Flood(context, line, start);
    if (verb == "lose") count += start.resume_tokens_size();
    for (int32_t index = start.resume_tokens_size(); index < count; ++index) {
      if (IsCancelled(context, start.request_id())) return;
      SendStep(line, {Token(start, index)});
    }
    if (verb == "die") return context.TryCancel();
    if (verb == "hang") return;
    while (verb == "late" && !IsCancelled(context, start.request_id())) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    while (verb == "wait" && !released_ && !IsCancelled(context, start.request_id())) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (verb == "lose" || verb == "late") return SendFailure(line, start, verb);
    worker::v1::Delta end;
    end.set_request_id(start.request_id());
    end.mutable_finish()->set_reason(worker::v1::Finish::STOP);
    end.mutable_finish()->set_completion_tokens(count);
    SendStep(line, {end});
  }

  static void SendFailure(Line& line, const worker::v1::Start& start, const std::string& verb) {
    worker::v1::Delta delta;
    delta.set_request_id(start.request_id());
    using worker::v1::Failure;
    delta.mutable_error()->set_code(verb == "drain"      ? Failure::DRAINING
                                    : verb == "overflow" ? Failure::CONTEXT_OVERFLOW
                                                         : Failure::GROUP_LOST);
    delta.mutable_error()->set_message("9000 tokens do not fit the context of 2048");
    delta.mutable_error()->set_field("chat");
    SendStep(line, {delta});
  }

  void Flood(grpc::ServerContext& context, Line& line, const worker::v1::Start& start) {
    for (int32_t index = 0; !IsCancelled(context, start.request_id()); ++index) {
      worker::v1::Delta delta = Token(start, index);
      delta.set_text(std::string(64 << 10, 'x'));
      SendStep(line, {delta});
    }
  }

  const std::string group_name_;
  std::string socket_;
  std::atomic<bool> healthy_ = false;
  std::atomic<bool> released_ = false;
  mutable std::mutex mu_;
  std::vector<worker::v1::Start> starts_;
  std::set<uint64_t> cancelled_;
  std::set<Line*> lines_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace rempart::router
