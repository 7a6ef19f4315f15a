// SPDX-License-Identifier: Apache-2.0
// An Attach service on a unix socket over any model, and a router's end of a stream.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/worker/v1/worker.grpc.pb.h"
#include "worker/api/attach_service.h"
#include "worker/engine/engine_thread.h"

namespace rempart::worker {

class AttachBench {
 public:
  AttachBench(const EngineOptions& options, ModelRunner* model, const Vocabulary* vocabulary,
              const PromptEncoder* encoder)
      : service_({.group_name = "ia/tiny-0", .served_names = {"tiny"}}, &clock_),
        engine_(options, model, vocabulary, &clock_,
                [this](const StepResult& result) { service_.Publish(result); }) {
    static std::atomic<int> next_socket = 0;
    socket_ = absl::StrCat("/tmp/rempart_attach_", getpid(), "_", ++next_socket, ".sock");
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    service_.Open(&engine_, encoder, vocabulary);
    thread_ = std::make_unique<EngineThread>(&engine_);
  }
  ~AttachBench() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    thread_.reset();
    unlink(socket_.c_str());
  }

  std::unique_ptr<v1::Worker::Stub> NewStub() const {
    return v1::Worker::NewStub(
        grpc::CreateChannel("unix:" + socket_, grpc::InsecureChannelCredentials()));
  }
  Engine& engine() { return engine_; }
  AttachService& service() { return service_; }

 private:
  SystemClock clock_;
  AttachService service_;
  Engine engine_;
  std::string socket_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<EngineThread> thread_;
};

// What a request received, put together.
struct Received {
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<v1::TokenLogprob> logprobs;
  v1::PromptFacts prompt;
  v1::Finish finish;
  v1::Failure error;
  int endings = 0;
};

class RouterEnd {
 public:
  explicit RouterEnd(const AttachBench& bench, bool hello = true) : stub_(bench.NewStub()) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    stream_ = stub_->Attach(&context_);
    if (!hello) return;
    v1::ToWorker message;
    message.mutable_hello()->set_router_id("test/0");
    message.mutable_hello()->set_protocol(kAttachProtocol);
    stream_->Write(message);
    v1::FromWorker frame;
    if (stream_->Read(&frame)) welcome = frame.welcome();
  }
  ~RouterEnd() {
    if (!finished_) context_.TryCancel(), Finish();
  }

  void Start(const v1::Start& start) {
    v1::ToWorker message;
    *message.mutable_start() = start;
    stream_->Write(message);
  }
  void Cancel(uint64_t request_id) {
    v1::ToWorker message;
    message.mutable_cancel()->set_request_id(request_id);
    stream_->Write(message);
  }
  void Write(const v1::ToWorker& message) { stream_->Write(message); }

  // Reads one frame; false at the stream's end.
  bool Read() {
    v1::FromWorker frame;
    if (!stream_->Read(&frame)) return false;
    if (frame.has_pong()) pong = frame.pong().nonce();
    if (!frame.has_step()) return true;
    EXPECT_EQ(frame.step().sequence_number(), ++steps);
    load = frame.step().load();
    for (const v1::Delta& delta : frame.step().deltas()) {
      Received& answer = answers[{delta.request_id(), delta.index()}];
      answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                              delta.token_ids().end());
      answer.text += delta.text();
      answer.logprobs.insert(answer.logprobs.end(), delta.logprobs().begin(),
                             delta.logprobs().end());
      if (delta.has_prompt()) answer.prompt = delta.prompt();
      if (delta.has_finish()) answer.finish = delta.finish(), ++answer.endings;
      if (delta.has_error()) answer.error = delta.error(), ++answer.endings;
    }
    return true;
  }
  // Reads until the request (index 0) has ended.
  Received Wait(uint64_t request_id) {
    while (answers[{request_id, 0}].endings == 0) {
      if (!Read()) {
        ADD_FAILURE() << "the stream ended: " << Finish().error_message();
        break;
      }
    }
    return answers[{request_id, 0}];
  }
  Received Ask(const v1::Start& start) {
    Start(start);
    return Wait(start.request_id());
  }
  grpc::Status Finish() {
    finished_ = true;
    return stream_->Finish();
  }
  void Break() {
    context_.TryCancel();
    Finish();
  }

  v1::Welcome welcome;
  std::map<std::pair<uint64_t, int32_t>, Received> answers;
  v1::Load load;
  uint64_t pong = 0;
  uint64_t steps = 0;

 private:
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ToWorker, v1::FromWorker>> stream_;
  bool finished_ = false;
};

inline v1::Start TextStart(uint64_t request_id, const std::string& text, int32_t max_tokens) {
  v1::Start start;
  start.set_request_id(request_id);
  start.set_text(text);
  start.set_max_tokens(max_tokens);
  start.mutable_sampling()->set_temperature(0);
  return start;
}

}  // namespace rempart::worker
