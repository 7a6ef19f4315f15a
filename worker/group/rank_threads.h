// SPDX-License-Identifier: Apache-2.0
// The ranks of this pod that no engine runs: one thread each, which takes steps in order and runs
// them: a step is begun behind the one that runs, where the model can, as soon as it has come. A
// rank that fails in a way that the others do not share ends its communicator, and so the step of
// all ranks.
//
// Push is called by one thread; the rest by any. Ends with its epoch: abort the communicators
// first, or Stop waits for the steps in progress. Each thread ends with no step that runs.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "worker/group/rank_steps.h"
#include "worker/group/step.h"

namespace rempart::worker {

class RankThreads {
 public:
  using OnError = std::function<void(int32_t rank, const absl::Status& status)>;

  // `on_error` is called by a rank's thread when a step has ended the communicator, once.
  RankThreads(const std::vector<LocalRank>& ranks, OnError on_error);
  ~RankThreads();

  // ResourceExhausted when the ranks are more than a few steps behind: no step of the leader ends
  // without them, so that this means a fault.
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
  // The next step. Null: it is time to stop, or one `runs` and no other has come for a while.
  std::shared_ptr<const GroupStep> Take(size_t lane, bool runs);
  bool stopping() const;

  const OnError on_error_;
  mutable Mutex mu_;
  std::vector<Lane> lanes_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace rempart::worker
