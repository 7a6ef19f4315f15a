// SPDX-License-Identifier: Apache-2.0
// The ranks of this pod that no engine runs: one thread each, which takes steps in order and runs
// them. A rank that fails in a way that the others do not share ends its communicator, and so the
// step of all ranks.
//
// Push is called by one thread; the rest by any. Ends with its epoch: abort the communicators
// first, or Stop waits for the step in progress.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "worker/comm/communicator.h"
#include "worker/group/rank_model.h"
#include "worker/group/rank_progress.h"
#include "worker/group/step.h"

namespace rempart::worker {

// A rank of this pod in one epoch. Everything outlives the threads.
struct LocalRank {
  int32_t rank = 0;
  RankModel* model = nullptr;
  Communicator* communicator = nullptr;  // null in a group of one rank
  RankProgress* progress = nullptr;
};

// True when every rank has come to the same error by itself: the batch was impossible, and nobody
// waits for anybody.
bool FailsOnAllRanks(const absl::Status& status, const Communicator* communicator);

class RankThreads {
 public:
  using OnError = std::function<void(int32_t rank, const absl::Status& status)>;

  // `on_error` is called by a rank's thread when a step has ended the communicator.
  RankThreads(const std::vector<LocalRank>& ranks, OnError on_error);
  ~RankThreads();

  // ResourceExhausted when the ranks are more than a few steps behind: the leader waits for them in
  // each step, so that this means a fault.
  absl::Status Push(std::shared_ptr<const GroupStep> step);
  // True when every thread has ended within `timeout`.
  bool Stop(absl::Duration timeout);

 private:
  struct Lane {
    LocalRank rank;
    std::deque<std::shared_ptr<const GroupStep>> steps;
    bool ended = false;
  };
  void Run(size_t lane);

  const OnError on_error_;
  Mutex mu_;
  std::vector<Lane> lanes_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace rempart::worker
