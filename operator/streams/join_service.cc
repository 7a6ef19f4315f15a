// SPDX-License-Identifier: Apache-2.0
#include "operator/streams/join_service.h"

#include <chrono>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/tls/tls.h"

namespace rempart::op {

using group::v1::FromMember;
using group::v1::ToMember;

constexpr auto kTick = std::chrono::milliseconds(100);
constexpr char kDoesNotLead[] = "this operator does not lead: Join at the one that does";

// One stream; deletes itself when gRPC is done with it.
class JoinStream : public grpc::ServerBidiReactor<FromMember, ToMember> {
 public:
  JoinStream(JoinService* service, JoinRegistry* registry, int64_t id)
      : service_(service), registry_(registry), id_(id) {}

  void Begin() { StartRead(&incoming_); }
  void Refuse(const absl::Status& why) {
    MutexLock lock(&mu_);
    FinishOnce(grpc::Status(static_cast<grpc::StatusCode>(why.code()), std::string(why.message())));
  }
  // Before Begin.
  void Redirect(const std::string& leader_address) {
    MutexLock lock(&mu_);
    finished_ = true;
    outgoing_.emplace_back().mutable_redirect()->set_leader_address(leader_address);
    StartWriteAndFinish(&outgoing_.front(), {},
                        {grpc::StatusCode::FAILED_PRECONDITION, kDoesNotLead});
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      MutexLock lock(&mu_);
      FinishOnce(grpc::Status::OK);
      return;
    }
    if (!TakeMessage()) return;
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    outgoing_.pop_front();
    if (ok && !outgoing_.empty() && !finished_) StartWrite(&outgoing_.front());
  }

  void OnCancel() override {
    MutexLock lock(&mu_);
    FinishOnce(grpc::Status::CANCELLED);
  }

  void OnDone() override {
    service_->Remove(this);
    registry_->Left(id_);
    delete this;
  }

 private:
  // False when the stream broke the protocol and has been ended.
  bool TakeMessage() {
    const bool is_identity = incoming_.kind_case() == FromMember::kIdentity;
    if (is_identity == introduced_ || (is_identity && incoming_.identity().group_name().empty())) {
      MutexLock lock(&mu_);
      FinishOnce({grpc::StatusCode::INVALID_ARGUMENT,
                  "Join: the first message, and only the first, is an identity with a group_name"});
      return false;
    }
    switch (incoming_.kind_case()) {
      case FromMember::kProgress:
        registry_->Progressed(id_, incoming_.progress());
        return true;
      case FromMember::kGpus:
        registry_->ToldGpus(id_, incoming_.gpus());
        return true;
      case FromMember::KIND_NOT_SET:  // of a newer worker
        return true;
      case FromMember::kIdentity:
        break;
    }
    introduced_ = true;
    if (const absl::Status admitted = service_->Admit(incoming_.identity()); !admitted.ok()) {
      LogWarning("join", "worker refused",
                 {{"group", incoming_.identity().group_name()},
                  {"node", incoming_.identity().node_name()},
                  {"why", admitted.message()}});
      Refuse(admitted);
      return false;
    }
    LogInfo("join", "worker joined",
            {{"group", incoming_.identity().group_name()},
             {"pod", incoming_.identity().pod_name()},
             {"version", incoming_.identity().version()},
             {"last_epoch", incoming_.identity().last_epoch()}});
    registry_->Joined(id_, incoming_.identity(),
                      [this](ToMember order) { Send(std::move(order)); });
    return true;
  }

  void Send(ToMember message) {
    MutexLock lock(&mu_);
    if (finished_) return;
    outgoing_.push_back(std::move(message));
    if (outgoing_.size() == 1) StartWrite(&outgoing_.front());
  }

  void FinishOnce(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_) return;
    finished_ = true;
    Finish(status);
  }

  JoinService* const service_;
  JoinRegistry* const registry_;
  const int64_t id_;
  // Owned by the read in progress.
  FromMember incoming_;
  bool introduced_ = false;

  Mutex mu_;
  std::deque<ToMember> outgoing_ ABSL_GUARDED_BY(mu_);  // the first is being written
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

JoinService::JoinService(JoinRegistry* registry, JoinOptions options)
    : registry_(registry),
      options_(std::move(options)),
      open_(options_.open),
      ticks_([registry](std::stop_token stop) {
        auto last = std::chrono::steady_clock::now();
        while (!stop.stop_requested()) {
          std::this_thread::sleep_for(kTick);
          const auto now = std::chrono::steady_clock::now();
          registry->Tick(absl::FromChrono(now - last));
          last = now;
        }
      }) {}

void JoinService::Open() {
  MutexLock lock(&mu_);
  open_ = true;
}

void JoinService::Close() {
  MutexLock lock(&mu_);
  open_ = false;
  for (JoinStream* stream : streams_) stream->Refuse(absl::FailedPreconditionError(kDoesNotLead));
}

absl::Status JoinService::Admit(const group::v1::Identity& identity) const {
  return options_.admit ? options_.admit(identity) : absl::OkStatus();
}

void JoinService::Remove(JoinStream* stream) {
  MutexLock lock(&mu_);
  streams_.erase(stream);
}

grpc::ServerBidiReactor<FromMember, ToMember>* JoinService::Join(
    grpc::CallbackServerContext* context) {
  auto* stream = new JoinStream(this, registry_, ++streams_opened_);
  if (!options_.required_caller.empty()) {
    const absl::Status caller = CheckCallerName(*context, options_.required_caller);
    if (!caller.ok()) {
      stream->Refuse(caller);
      return stream;
    }
  }
  {
    MutexLock lock(&mu_);
    if (open_) {
      streams_.insert(stream);
      stream->Begin();
      return stream;
    }
  }
  ++redirected_;
  stream->Redirect(options_.leader_address ? options_.leader_address() : "");
  return stream;
}

}  // namespace rempart::op
