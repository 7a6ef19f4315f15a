// SPDX-License-Identifier: Apache-2.0
#include "worker/api/follow_service.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/printable.h"
#include "common/tls/tls.h"
#include "worker/api/group_wire.h"

namespace rempart::worker {
namespace {

using group::v1::FromFollower;
using group::v1::ToFollower;

constexpr size_t kMaxShortageBytes = 200;

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

// One stream; deletes itself when gRPC is done with it.
class FollowStream : public grpc::ServerBidiReactor<FromFollower, ToFollower> {
 public:
  explicit FollowStream(FollowService* service) : service_(service) {}

  void Begin() { StartRead(&incoming_); }

  // False when the follower is too far behind.
  bool Send(std::shared_ptr<const ToFollower> message) {
    MutexLock lock(&mu_);
    if (closing_.has_value()) return true;
    if (outgoing_.size() >= kMaxBehind) return false;
    outgoing_.push_back(std::move(message));
    WriteNext();
    return true;
  }
  void Close(const grpc::Status& status) {
    MutexLock lock(&mu_);
    if (!closing_.has_value()) closing_ = status;
    WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Close(grpc::Status::OK);
    if (!introduced_) {
      if (!incoming_.has_hello()) {
        return Close({grpc::StatusCode::INVALID_ARGUMENT, "Follow: the first message is a hello"});
      }
      const grpc::Status refused = service_->Hello(this, incoming_.hello());
      if (!refused.ok()) return Close(refused);
      introduced_ = true;
    } else {
      service_->Heard(this, incoming_);
    }
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    writing_ = false;
    outgoing_.pop_front();
    if (!ok && !closing_.has_value()) closing_ = grpc::Status::CANCELLED;
    WriteNext();
  }
  void OnCancel() override { Close(grpc::Status::CANCELLED); }
  void OnDone() override {
    service_->Left(this);
    delete this;
  }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_) return;
    if (closing_.has_value()) {
      finished_ = true;
      Finish(*closing_);
      return;
    }
    if (outgoing_.empty()) return;
    writing_ = true;
    StartWrite(outgoing_.front().get());
  }

  FollowService* const service_;
  // Owned by the read in progress.
  FromFollower incoming_;
  bool introduced_ = false;

  Mutex mu_;
  std::deque<std::shared_ptr<const ToFollower>> outgoing_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

FollowService::FollowService(std::string required_caller)
    : required_caller_(std::move(required_caller)),
      beat_([this](std::stop_token stop) { Beat(stop); }) {}

FollowService::~FollowService() = default;

void FollowService::Open(int32_t epoch, int32_t pods, int32_t ranks_per_pod, EpochFate* fate) {
  MutexLock lock(&mu_);
  epoch_ = epoch;
  pods_ = pods;
  ranks_per_pod_ = ranks_per_pod;
  fate_ = fate;
  followers_.clear();
}

void FollowService::Close(const std::string& reason) {
  MutexLock lock(&mu_);
  for (auto& [pod, follower] : followers_) {
    if (follower.stream == nullptr) continue;
    follower.stream->Close({grpc::StatusCode::ABORTED, reason});
  }
  followers_.clear();
  epoch_ = 0;
  fate_ = nullptr;
}

bool FollowService::WaitForFollowers(absl::Duration timeout) {
  MutexLock lock(&mu_);
  const auto complete_or_over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return static_cast<int32_t>(followers_.size()) == pods_ - 1 || fate_->end().has_value();
  };
  const absl::Time deadline = SteadyNow() + timeout;
  while (!complete_or_over() && SteadyNow() < deadline) {
    mu_.AwaitWithTimeout(absl::Condition(&complete_or_over), absl::Milliseconds(50));
  }
  return static_cast<int32_t>(followers_.size()) == pods_ - 1 && !fate_->end().has_value();
}

absl::Status FollowService::Send(const GroupStep& step) {
  auto message = std::make_shared<ToFollower>();
  WriteStep(step, message.get());
  MutexLock lock(&mu_);
  if (step.epoch != epoch_) return absl::UnavailableError("the epoch is over");
  for (auto& [pod, follower] : followers_) {
    if (follower.stream == nullptr) {
      return absl::UnavailableError(absl::StrCat("pod ", pod, " no longer follows"));
    }
    if (!follower.stream->Send(message)) {
      return absl::UnavailableError(absl::StrCat("pod ", pod, " is ", kMaxBehind, " steps behind"));
    }
  }
  return absl::OkStatus();
}

std::vector<RankStatus> FollowService::Ranks() const {
  std::vector<RankStatus> ranks;
  MutexLock lock(&mu_);
  for (const auto& [pod, follower] : followers_) {
    const int64_t age = std::max<int64_t>(1, NowMs() - follower.heard_ms);
    for (const auto& [rank, told] : follower.ranks) {
      ranks.push_back(told);
      ranks.back().heard_age_ms = age;
    }
  }
  return ranks;
}

std::string FollowService::MemoryShortage() const {
  std::string text;
  MutexLock lock(&mu_);
  for (const auto& [pod, follower] : followers_) {
    if (follower.shortage.empty()) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", "pod ", pod, ": ", follower.shortage);
  }
  return text;
}

grpc::Status FollowService::Hello(FollowStream* stream, const group::v1::FollowerHello& hello) {
  MutexLock lock(&mu_);
  if (epoch_ == 0 || hello.epoch() != epoch_) {
    return {grpc::StatusCode::FAILED_PRECONDITION,
            absl::StrCat("this leader is in epoch ", epoch_, ", not in ", hello.epoch())};
  }
  if (hello.pod_index() < 1 || hello.pod_index() >= pods_ ||
      followers_.count(hello.pod_index()) > 0) {
    return {
        grpc::StatusCode::INVALID_ARGUMENT,
        absl::StrCat("pod ", hello.pod_index(), " of ", pods_, " cannot follow, or does already")};
  }
  Follower& follower = followers_[hello.pod_index()];
  follower.stream = stream;
  follower.heard_ms = NowMs();
  for (int32_t i = 0; i < ranks_per_pod_; ++i) {
    const int32_t rank = hello.pod_index() * ranks_per_pod_ + i;
    follower.ranks[rank].rank = rank;
    follower.ranks[rank].epoch = epoch_;
  }
  auto welcome = std::make_shared<ToFollower>();
  welcome->set_epoch(epoch_);
  stream->Send(std::move(welcome));
  return grpc::Status::OK;
}

void FollowService::Heard(FollowStream* stream, const FromFollower& message) {
  MutexLock lock(&mu_);
  for (auto& [pod, follower] : followers_) {
    if (follower.stream != stream) continue;
    follower.heard_ms = NowMs();
    if (message.has_progress()) {
      const auto known = follower.ranks.find(message.progress().rank());
      if (known != follower.ranks.end()) known->second = ReadRank(message.progress());
    }
    if (message.has_memory()) {
      const std::string shortage = Printable(message.memory().shortage(), kMaxShortageBytes);
      if (shortage.empty() != follower.shortage.empty()) {
        LogWarning("follow", shortage.empty() ? "memory is no longer short" : "memory is short",
                   {{"pod", pod}, {"reason", shortage}});
      }
      follower.shortage = shortage;
    }
  }
}

void FollowService::Left(FollowStream* stream) {
  MutexLock lock(&mu_);
  for (auto& [pod, follower] : followers_) {
    if (follower.stream != stream) continue;
    follower.stream = nullptr;
    if (fate_ == nullptr) return;
    fate_->End(absl::StrCat("pod ", pod, " no longer follows"), pod * ranks_per_pod_);
  }
}

void FollowService::Beat(std::stop_token stop) {
  absl::Time next = SteadyNow();
  while (!stop.stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (SteadyNow() < next && SteadyNow() > next - 2 * kFollowBeat) continue;
    next = SteadyNow() + kFollowBeat;
    MutexLock lock(&mu_);
    if (epoch_ == 0) continue;
    auto beat = std::make_shared<ToFollower>();
    beat->set_epoch(epoch_);
    for (auto& [pod, follower] : followers_) {
      if (follower.stream == nullptr) continue;
      follower.stream->Send(beat);
      const int64_t silent = NowMs() - follower.heard_ms;
      if (silent > absl::ToInt64Milliseconds(kFollowSilence)) {
        fate_->End(absl::StrCat("pod ", pod, " has said nothing for ", silent, " ms"),
                   pod * ranks_per_pod_);
      }
    }
  }
}

grpc::ServerBidiReactor<FromFollower, ToFollower>* FollowService::Follow(
    grpc::CallbackServerContext* context) {
  auto* stream = new FollowStream(this);
  if (!required_caller_.empty()) {
    if (const absl::Status caller = CheckCallerName(*context, required_caller_); !caller.ok()) {
      LogWarning("follow", "caller refused", {{"reason", caller.message()}});
      stream->Close({static_cast<grpc::StatusCode>(caller.code()), std::string(caller.message())});
      return stream;
    }
  }
  stream->Begin();
  return stream;
}

}  // namespace rempart::worker
