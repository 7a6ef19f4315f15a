// SPDX-License-Identifier: Apache-2.0
#include "worker/api/attach_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/api/attach_service.h"

namespace rempart::worker {
namespace {

constexpr size_t kMaxPendingControl = 64;

}  // namespace

void AttachStream::SendControl(v1::FromWorker frame) {
  {
    MutexLock lock(&mu_);
    if (closing_) return;
    control_.push_back(std::move(frame));
    if (control_.size() <= kMaxPendingControl) {
      WriteNext();
      return;
    }
  }
  Close(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many pings without reading"));
}

void AttachStream::SendStep(v1::Step step) {
  MutexLock lock(&mu_);
  if (closing_) return;
  if (step_) {
    step_->mutable_deltas()->MergeFrom(step.deltas());
    step_->mutable_load()->Swap(step.mutable_load());
  } else {
    step_ = std::move(step);
  }
  if (step_->deltas_size() > kMaxPendingDeltas) {
    closing_ =
        grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the router does not read its answers");
  }
  WriteNext();
}

void AttachStream::Close(grpc::Status status) {
  {
    MutexLock lock(&mu_);
    if (!closing_) closing_ = std::move(status);
    WriteNext();
  }
  service_->Forget(this);
}

void AttachStream::WriteNext() {
  if (writing_ || finished_) return;
  if (closing_) {
    finished_ = true;
    Finish(*closing_);
    return;
  }
  if (!control_.empty()) {
    outgoing_ = std::move(control_.front());
    control_.pop_front();
  } else if (step_) {
    outgoing_.Clear();
    *outgoing_.mutable_step() = *std::exchange(step_, std::nullopt);
    outgoing_.mutable_step()->set_sequence_number(++sequence_number_);
  } else {
    return;
  }
  writing_ = true;
  StartWrite(&outgoing_);
}

void AttachStream::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mu_);
    writing_ = false;
    if (!ok && !closing_) closing_ = grpc::Status::CANCELLED;
    WriteNext();
    if (!closing_) return;
  }
  service_->Forget(this);
}

void AttachStream::OnReadDone(bool ok) {
  if (!ok) return Close(grpc::Status::OK);
  if (HandleMessage()) StartRead(&incoming_);
}

bool AttachStream::HandleMessage() {
  const auto refuse = [this](grpc::StatusCode code, const std::string& message) {
    Close(grpc::Status(code, message));
    return false;
  };
  if (!said_hello_) {
    if (!incoming_.has_hello()) {
      return refuse(grpc::StatusCode::INVALID_ARGUMENT, "the first message must be hello");
    }
    if (incoming_.hello().protocol() != kAttachProtocol) {
      return refuse(grpc::StatusCode::FAILED_PRECONDITION,
                    absl::StrCat("this worker speaks protocol ", kAttachProtocol, ", not ",
                                 incoming_.hello().protocol()));
    }
    said_hello_ = true;
    SendControl(service_->WelcomeFrame());
    return true;
  }
  switch (incoming_.kind_case()) {
    case v1::ToWorker::kStart:
      if (service_->HandleStart(this, incoming_.start())) return true;
      return refuse(grpc::StatusCode::INVALID_ARGUMENT,
                    absl::StrCat("request_id ", incoming_.start().request_id(), " is in use"));
    case v1::ToWorker::kCancel:
      service_->HandleCancel(this, incoming_.cancel().request_id());
      return true;
    case v1::ToWorker::kPing: {
      v1::FromWorker frame;
      frame.mutable_pong()->set_nonce(incoming_.ping().nonce());
      SendControl(std::move(frame));
      return true;
    }
    case v1::ToWorker::kHello:
      return refuse(grpc::StatusCode::INVALID_ARGUMENT, "hello was said before");
    case v1::ToWorker::KIND_NOT_SET:
      return refuse(grpc::StatusCode::INVALID_ARGUMENT, "a message of a kind unknown here");
  }
  return true;
}

void AttachStream::OnCancel() { Close(grpc::Status::CANCELLED); }

void AttachStream::OnDone() {
  service_->Forget(this);
  service_->Remove(this);
}

}  // namespace rempart::worker
