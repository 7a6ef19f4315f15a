// SPDX-License-Identifier: Apache-2.0
#include "worker/api/follow_client.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/api/follow_service.h"
#include "worker/api/group_wire.h"

namespace rempart::worker {
namespace {

using group::v1::FromFollower;
using group::v1::ToFollower;

constexpr absl::Duration kPause = absl::Milliseconds(50);
constexpr int kMaxMessageBytes = 64 << 20;

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<FollowClient>> FollowClient::Start(const FollowOptions& options,
                                                                  OnStep on_step, ReadRanks ranks,
                                                                  EpochFate* fate) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel,
                   Dial(options.tls, options.leader_address, arguments));
  return std::unique_ptr<FollowClient>(
      new FollowClient(options, std::move(channel), std::move(on_step), std::move(ranks), fate));
}

FollowClient::FollowClient(const FollowOptions& options, std::shared_ptr<grpc::Channel> channel,
                           OnStep on_step, ReadRanks ranks, EpochFate* fate)
    : options_(options),
      channel_(std::move(channel)),
      on_step_(std::move(on_step)),
      ranks_(std::move(ranks)),
      fate_(fate),
      thread_([this] { Run(); }) {}

FollowClient::~FollowClient() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  thread_.join();
}

bool FollowClient::following() const {
  MutexLock lock(&mu_);
  return following_;
}

int64_t FollowClient::leader_age_ms() const {
  MutexLock lock(&mu_);
  return heard_ms_ == 0 ? 0 : std::max<int64_t>(1, NowMs() - heard_ms_);
}

void FollowClient::TellMemory(const std::string& shortage) {
  MutexLock lock(&mu_);
  shortage_ = shortage;
}

bool FollowClient::stopping() const {
  MutexLock lock(&mu_);
  return stopping_;
}

void FollowClient::Run() {
  while (!stopping() && !fate_->end().has_value() && RunStream()) {
    MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&stopping_), kPause);
  }
}

bool FollowClient::RunStream() {
  grpc::ClientContext context;
  {
    MutexLock lock(&mu_);
    if (stopping_) return false;
    context_ = &context;
    broken_ = false;
    told_shortage_.clear();
  }
  auto stub = group::v1::GroupLeader::NewStub(channel_);
  auto stream = stub->Follow(&context);
  FromFollower hello;
  hello.mutable_hello()->set_pod_index(options_.pod_index);
  hello.mutable_hello()->set_epoch(options_.epoch);
  stream->Write(hello);
  std::thread writer([&] { WriteBeats(*stream); });
  Read(*stream);
  {
    MutexLock lock(&mu_);
    broken_ = true;
  }
  context.TryCancel();
  writer.join();
  const grpc::Status status = stream->Finish();
  MutexLock lock(&mu_);
  context_ = nullptr;
  if (stopping_) return false;
  if (!following_) return true;
  // Told by the leader that the epoch is over, or the leader is gone.
  const bool told = status.error_code() == grpc::StatusCode::ABORTED;
  fate_->End(told ? absl::StrCat("the leader ended the epoch: ", status.error_message())
                  : absl::StrCat("the leader is gone: ", status.error_message()),
             told ? -1 : 0);
  return false;
}

void FollowClient::Read(grpc::ClientReaderWriter<FromFollower, ToFollower>& stream) {
  ToFollower message;
  while (stream.Read(&message)) {
    {
      MutexLock lock(&mu_);
      heard_ms_ = NowMs();
      following_ = true;
    }
    if (message.epoch() != options_.epoch) {
      return fate_->End(
          absl::StrCat("a step of epoch ", message.epoch(), " in epoch ", options_.epoch), -1);
    }
    if (message.step() == 0) continue;  // the leader lives
    if (message.step() != last_step_ + 1) {
      return fate_->End(absl::StrCat("step ", message.step(), " came after ", last_step_), -1);
    }
    last_step_ = message.step();
    absl::StatusOr<GroupStep> step = ReadStep(message);
    absl::Status status = step.status();
    if (step.ok()) status = on_step_(std::make_shared<const GroupStep>(*std::move(step)));
    if (!status.ok()) return fate_->End(std::string(status.message()), -1);
  }
}

void FollowClient::WriteBeats(grpc::ClientReaderWriter<FromFollower, ToFollower>& stream) {
  const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || broken_ || shortage_ != told_shortage_;
  };
  for (;;) {
    std::vector<FromFollower> frames;
    {
      MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&wake), kFollowBeat);
      if (stopping_ || broken_) return;
      if (shortage_ != told_shortage_) {
        frames.emplace_back().mutable_memory()->set_shortage(shortage_);
        told_shortage_ = shortage_;
      }
      const int64_t silent = NowMs() - heard_ms_;
      if (following_ && silent > absl::ToInt64Milliseconds(kFollowSilence)) {
        fate_->End(absl::StrCat("the leader has said nothing for ", silent, " ms"), 0);
      }
    }
    for (const RankStatus& status : ranks_()) {
      FromFollower frame;
      WriteRank(status, frame.mutable_progress());
      frames.push_back(std::move(frame));
    }
    for (const FromFollower& frame : frames) {
      if (!stream.Write(frame)) return;
    }
  }
}

}  // namespace rempart::worker
