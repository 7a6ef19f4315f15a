// SPDX-License-Identifier: Apache-2.0
#include "worker/group/rank_threads.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

constexpr size_t kMaxStepsBehind = 8;

}  // namespace

bool FailsOnAllRanks(const absl::Status& status, const Communicator* communicator) {
  return communicator == nullptr ||
         (absl::IsInvalidArgument(status) && communicator->status().ok());
}

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

void RankThreads::Run(size_t index) {
  LocalRank rank;
  std::shared_ptr<const GroupStep> step;
  const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || !lanes_[index].steps.empty();
  };
  for (;;) {
    {
      MutexLock lock(&mu_);
      rank = lanes_[index].rank;
      while (!mu_.AwaitWithTimeout(absl::Condition(&ready), absl::Seconds(60))) {
      }
      if (stopping_) {
        lanes_[index].ended = true;
        return;
      }
      step = std::move(lanes_[index].steps.front());
      lanes_[index].steps.pop_front();
    }
    rank.progress->BeginStep();
    const absl::Status status = rank.model->Forward(BatchOf(*step), {}, {});
    rank.progress->EndStep(step->step);
    if (status.ok() || FailsOnAllRanks(status, rank.communicator)) continue;
    rank.communicator->Abort(status, rank.communicator->progress().blamed_rank);
    on_error_(rank.rank, status);
  }
}

}  // namespace rempart::worker
