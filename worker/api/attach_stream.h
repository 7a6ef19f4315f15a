// SPDX-License-Identifier: Apache-2.0
// One Attach stream: reads messages one after the other, writes frames one after the other. Owned
// by the AttachService, which forgets it in OnDone; lock order: the service's mutex before this
// one's.
#pragma once

#include <deque>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "proto/worker/v1/worker.grpc.pb.h"

namespace rempart::worker {

class AttachService;

class AttachStream : public grpc::ServerBidiReactor<v1::ToWorker, v1::FromWorker> {
 public:
  AttachStream(AttachService* service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {}

  void Begin() { StartRead(&incoming_); }
  // Queues Welcome or Pong.
  void SendControl(v1::FromWorker frame);
  // Queues deltas; merged with a step that is still waiting to be written.
  void SendStep(v1::Step step);
  // Ends the stream; what is queued is dropped.
  void Close(grpc::Status status);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // False when the stream has been closed by what it said.
  bool HandleMessage();
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  AttachService* const service_;
  grpc::CallbackServerContext* const context_;  // valid until OnDone

  // Owned by the read in progress.
  v1::ToWorker incoming_;
  bool said_hello_ = false;

  Mutex mu_;
  v1::FromWorker outgoing_ ABSL_GUARDED_BY(mu_);  // while writing_: gRPC's
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<v1::FromWorker> control_ ABSL_GUARDED_BY(mu_);
  std::optional<v1::Step> step_ ABSL_GUARDED_BY(mu_);
  uint64_t sequence_number_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace rempart::worker
