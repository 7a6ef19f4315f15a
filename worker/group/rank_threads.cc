// SPDX-License-Identifier: Apache-2.0
#include "worker/group/rank_threads.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

constexpr size_t kMaxStepsBehind = 8;
// For the step that follows the one that runs. The leader sends it when it has begun it itself, a
// few milliseconds after the end of the step before, if at all; who waits for the running one then
// begins it when that has ended. Nobody waits for this rank to say that a step has ended.
constexpr absl::Duration kForTheNext = absl::Milliseconds(20);

}  // namespace

RankThreads::RankThreads(const std::vector<LocalRank>& ranks, OnError on_error)
    : on_error_(std::move(on_error)) {
  {
    MutexLock lock(&mu_);
    for (const LocalRank& rank : ranks) lanes_.push_back({rank, {}, false});
  }
  for (size_t i = 0; i < ranks.size(); ++i) threads_.emplace_back([this, i] { Run(i); });
}

RankThreads::~RankThreads() {
  Stop(absl::ZeroDuration());
  for (std::thread& thread : threads_) thread.join();
}

absl::Status RankThreads::Push(std::shared_ptr<const GroupStep> step) {
  MutexLock lock(&mu_);
  for (Lane& lane : lanes_) {
    if (lane.steps.size() >= kMaxStepsBehind) {
      return absl::ResourceExhaustedError(
          absl::StrCat("rank ", lane.rank.rank, " is ", lane.steps.size(), " steps behind"));
    }
    lane.steps.push_back(step);
  }
  return absl::OkStatus();
}

bool RankThreads::Stop(absl::Duration timeout) {
  MutexLock lock(&mu_);
  stopping_ = true;
  const auto all_ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.ended; });
  };
  return mu_.AwaitWithTimeout(absl::Condition(&all_ended), timeout);
}

bool RankThreads::stopping() const {
  MutexLock lock(&mu_);
  return stopping_;
}

std::shared_ptr<const GroupStep> RankThreads::Take(size_t index, bool runs) {
  MutexLock lock(&mu_);
  std::deque<std::shared_ptr<const GroupStep>>& steps = lanes_[index].steps;
  const auto ready = [&]()
                         ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !steps.empty(); };
  while (!mu_.AwaitWithTimeout(absl::Condition(&ready), runs ? kForTheNext : absl::Seconds(60))) {
    if (runs) return nullptr;
  }
  if (stopping_) return nullptr;
  std::shared_ptr<const GroupStep> step = std::move(steps.front());
  steps.pop_front();
  return step;
}

void RankThreads::Run(size_t index) {
  LocalRank rank;
  {
    MutexLock lock(&mu_);
    rank = lanes_[index].rank;
  }
  RankSteps steps(rank);
  bool has_failed = false;
  const auto note = [&](const absl::Status& status) {
    if (status.ok() || has_failed || FailsOnAllRanks(status, rank.communicator)) return;
    has_failed = true;
    rank.communicator->Abort(status, rank.communicator->progress().blamed_rank);
    on_error_(rank.rank, status);
  };
  for (;;) {
    const std::shared_ptr<const GroupStep> step = Take(index, steps.running() > 0);
    if (stopping()) break;
    if (step == nullptr) {
      note(steps.Finish({}, {}));
    } else if (steps.has_pipeline()) {
      note(steps.Start(step->step, BatchOf(*step)).status());
      if (steps.running() > 1) note(steps.Finish({}, {}));
    } else {
      note(steps.Forward(step->step, BatchOf(*step), {}, {}));
    }
  }
  // What has been aborted by now is nobody's fault.
  while (steps.running() > 0) steps.Finish({}, {}).IgnoreError();
  MutexLock lock(&mu_);
  lanes_[index].ended = true;
}

}  // namespace rempart::worker
