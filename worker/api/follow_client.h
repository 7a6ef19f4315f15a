// SPDX-License-Identifier: Apache-2.0
// A follower's end of Follow in one epoch: hands the leader's steps to the ranks of this pod, and
// tells every 500 ms what they do. It holds no policy: a step of another epoch or out of order ends
// the epoch, and so does a leader that leaves or falls silent.
//
// Threads: one that dials and reads, one that writes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "common/tls/tls.h"
#include "proto/group/v1/group.grpc.pb.h"
#include "worker/group/epoch_fate.h"
#include "worker/group/rank_progress.h"
#include "worker/group/step.h"

namespace rempart::worker {

struct FollowOptions {
  std::string leader_address;
  TlsConfig tls;
  int32_t pod_index = 0;
  int32_t epoch = 0;
};

class FollowClient {
 public:
  using OnStep = std::function<absl::Status(std::shared_ptr<const GroupStep>)>;
  using ReadRanks = std::function<std::vector<RankStatus>()>;

  // `fate` outlives the client. Dials again until the leader has opened the epoch or the epoch is
  // over.
  static absl::StatusOr<std::unique_ptr<FollowClient>> Start(const FollowOptions& options,
                                                             OnStep on_step, ReadRanks ranks,
                                                             EpochFate* fate);
  ~FollowClient();

  // The leader has let this pod in.
  bool following() const;
  // Since the leader was last heard; 0 before the first time.
  int64_t leader_age_ms() const;
  // Tells the leader why this pod's memory is short; empty: it is not.
  void TellMemory(const std::string& shortage);

 private:
  FollowClient(const FollowOptions& options, std::shared_ptr<grpc::Channel> channel, OnStep on_step,
               ReadRanks ranks, EpochFate* fate);
  void Run();
  // One stream. False when it is not worth dialling again.
  bool RunStream();
  void Read(grpc::ClientReaderWriter<group::v1::FromFollower, group::v1::ToFollower>& stream);
  void WriteBeats(grpc::ClientReaderWriter<group::v1::FromFollower, group::v1::ToFollower>& stream);
  bool stopping() const;

  const FollowOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const OnStep on_step_;
  const ReadRanks ranks_;
  EpochFate* const fate_;

  mutable Mutex mu_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool following_ ABSL_GUARDED_BY(mu_) = false;
  int64_t heard_ms_ ABSL_GUARDED_BY(mu_) = 0;
  std::string shortage_ ABSL_GUARDED_BY(mu_);
  std::string told_shortage_ ABSL_GUARDED_BY(mu_);  // on the stream that there is

  // Of the reading thread.
  int64_t last_step_ = 0;

  std::thread thread_;
};

}  // namespace rempart::worker
