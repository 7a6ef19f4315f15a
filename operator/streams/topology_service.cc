// SPDX-License-Identifier: Apache-2.0
#include "operator/streams/topology_service.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/tls/tls.h"
#include "google/protobuf/util/message_differencer.h"

namespace rempart::op {

using topology::v1::FromRouter;
using topology::v1::Snapshot;

constexpr int32_t kTopologyProtocol = 1;

// One stream; deletes itself when gRPC is done with it.
class TopologyStream : public grpc::ServerBidiReactor<FromRouter, Snapshot> {
 public:
  explicit TopologyStream(TopologyService* service) : service_(service) {}

  void Begin() { StartRead(&incoming_); }

  void Send(std::shared_ptr<const Snapshot> snapshot) {
    MutexLock lock(&mu_);
    next_ = std::move(snapshot);
    if (greeted_ && writing_ == nullptr) WriteNext();
  }

  void Close(const grpc::Status& status) {
    MutexLock lock(&mu_);
    FinishOnce(status);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Close(grpc::Status::OK);
    if (incoming_.kind_case() == FromRouter::kHello) {
      if (incoming_.hello().protocol() > kTopologyProtocol) {
        return Close({grpc::StatusCode::FAILED_PRECONDITION,
                      absl::StrCat("Topology: protocol ", incoming_.hello().protocol(),
                                   " is newer than this operator's ", kTopologyProtocol,
                                   "; upgrade the operator first")});
      }
      LogInfo("topology", "router joined", {{"router", incoming_.hello().router_id()}});
      MutexLock lock(&mu_);
      greeted_ = true;
      if (writing_ == nullptr) WriteNext();
    }
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    writing_ = nullptr;
    if (ok) WriteNext();
  }

  void OnCancel() override { Close(grpc::Status::CANCELLED); }

  void OnDone() override {
    service_->Remove(this);
    delete this;
  }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (next_ == nullptr || finished_) return;
    writing_ = std::exchange(next_, nullptr);
    StartWrite(writing_.get());
  }

  void FinishOnce(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_) return;
    finished_ = true;
    Finish(status);
  }

  TopologyService* const service_;
  FromRouter incoming_;  // owned by the read in progress

  Mutex mu_;
  bool greeted_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<const Snapshot> next_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const Snapshot> writing_ ABSL_GUARDED_BY(mu_);
};

void TopologyService::Publish(Snapshot snapshot) {
  MutexLock lock(&mu_);
  if (latest_ != nullptr) {
    // Time makes versions that grow over restarts of the operator, too.
    snapshot.set_version(latest_->version());
    if (google::protobuf::util::MessageDifferencer::Equals(snapshot, *latest_)) return;
  }
  const auto now = static_cast<uint64_t>(absl::ToUnixMillis(absl::Now()));
  snapshot.set_version(std::max(now, snapshot.version() + 1));
  latest_ = std::make_shared<const Snapshot>(std::move(snapshot));
  for (TopologyStream* stream : streams_) stream->Send(latest_);
}

int TopologyService::streams() const {
  MutexLock lock(&mu_);
  return static_cast<int>(streams_.size());
}

void TopologyService::Remove(TopologyStream* stream) {
  MutexLock lock(&mu_);
  streams_.erase(stream);
}

grpc::ServerBidiReactor<FromRouter, Snapshot>* TopologyService::Watch(
    grpc::CallbackServerContext* context) {
  auto* stream = new TopologyStream(this);
  if (!required_caller_.empty()) {
    if (const absl::Status caller = CheckCallerName(*context, required_caller_); !caller.ok()) {
      stream->Close({static_cast<grpc::StatusCode>(caller.code()), std::string(caller.message())});
      return stream;
    }
  }
  {
    MutexLock lock(&mu_);
    streams_.insert(stream);
    if (latest_ != nullptr) stream->Send(latest_);
  }
  stream->Begin();
  return stream;
}

}  // namespace rempart::op
