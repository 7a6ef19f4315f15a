// SPDX-License-Identifier: Apache-2.0
// The leader's end of Follow: one stream per other pod of the group. Steps go down, what the
// followers' ranks do comes up.
//
// 1. A stream belongs to one epoch: a follower that names another is refused, and the end of the
//    epoch ends its streams.
// 2. Send never waits: a follower that lets kMaxBehind steps gather ends the epoch.
// 3. A follower that is not heard for kFollowSilence, or whose stream breaks, ends the epoch: this
// is
//    what holds when the operator, who would have noticed earlier, is away.
//
// Threads: gRPC's; the engine's calls Send; one of its own says every 500 ms that the leader lives.
#pragma once

#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "proto/group/v1/group.grpc.pb.h"
#include "worker/group/epoch_fate.h"
#include "worker/group/rank_progress.h"
#include "worker/group/step.h"

namespace rempart::worker {

// Between two words on a Follow stream, either way.
constexpr absl::Duration kFollowBeat = absl::Milliseconds(500);
constexpr absl::Duration kFollowSilence = absl::Seconds(10);
constexpr size_t kMaxBehind = 16;

class FollowStream;

class FollowService : public group::v1::GroupLeader::CallbackService {
 public:
  // `required_caller`: the name that a follower's certificate must carry; empty without TLS.
  explicit FollowService(std::string required_caller);
  ~FollowService() override;

  // The leader is in `epoch`, with so many pods of so many ranks. `fate` outlives the epoch.
  void Open(int32_t epoch, int32_t pods, int32_t ranks_per_pod, EpochFate* fate);
  // Ends the streams of the epoch; `reason` is what the followers are told.
  void Close(const std::string& reason);
  // True when every other pod follows, within `timeout` and before the epoch is over.
  bool WaitForFollowers(absl::Duration timeout);
  absl::Status Send(const GroupStep& step);
  // The ranks of the other pods as they last told, with the age of that.
  std::vector<RankStatus> Ranks() const;
  // Which of the other pods are short of memory and why: "pod 1: 990 of 1000 MiB are in use";
  // empty: none is.
  std::string MemoryShortage() const;

  grpc::ServerBidiReactor<group::v1::FromFollower, group::v1::ToFollower>* Follow(
      grpc::CallbackServerContext* context) override;

 private:
  friend class FollowStream;
  struct Follower {
    FollowStream* stream = nullptr;  // null: gone
    std::map<int32_t, RankStatus> ranks;
    std::string shortage;  // of memory
    int64_t heard_ms = 0;  // monotonic
  };

  // Calls of a stream.
  grpc::Status Hello(FollowStream* stream, const group::v1::FollowerHello& hello);
  void Heard(FollowStream* stream, const group::v1::FromFollower& message);
  void Left(FollowStream* stream);
  void Beat(std::stop_token stop);

  const std::string required_caller_;

  // Lock order: this before a stream's.
  mutable Mutex mu_;
  int32_t epoch_ ABSL_GUARDED_BY(mu_) = 0;  // 0: none
  int32_t pods_ ABSL_GUARDED_BY(mu_) = 1;
  int32_t ranks_per_pod_ ABSL_GUARDED_BY(mu_) = 1;
  EpochFate* fate_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::map<int32_t, Follower> followers_ ABSL_GUARDED_BY(mu_);  // by pod index

  std::jthread beat_;  // last: starts when all is constructed
};

}  // namespace rempart::worker
