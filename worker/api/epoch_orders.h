// SPDX-License-Identifier: Apache-2.0
// What this process has been ordered about epochs: the operator's on the Join stream, or its own in
// a group of one pod. Orders come on gRPC's threads, the process's main thread waits for them.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "worker/group/epoch_fate.h"

namespace rempart::worker {

// The membership of an epoch; all by pod index.
struct EpochOrder {
  int32_t epoch = 0;
  std::vector<std::string> addresses = {};
  std::vector<std::string> data_addresses = {};
  std::string key = {};
};

class EpochOrders {
 public:
  // An epoch later than the one that runs ends that.
  void Begin(EpochOrder order) {
    MutexLock lock(&mu_);
    if (order.epoch <= last_epoch_) return;
    last_epoch_ = order.epoch;
    next_ = std::move(order);
    if (fate_ != nullptr) fate_->End("a new epoch begins", -1);
  }
  void GoOn(int32_t epoch) {
    MutexLock lock(&mu_);
    went_on_ = std::max(went_on_, epoch);
  }
  void End(int32_t epoch, std::string reason, int32_t blamed_rank) {
    MutexLock lock(&mu_);
    if (next_.has_value() && next_->epoch == epoch) next_.reset();
    if (fate_ != nullptr && running_ == epoch) fate_->End(std::move(reason), blamed_rank);
  }

  // The next epoch, and from now on its fate hears of its end; nothing when none came in time.
  std::optional<EpochOrder> Take(absl::Duration timeout, EpochFate* fate) {
    MutexLock lock(&mu_);
    const auto there = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return next_.has_value(); };
    if (!mu_.AwaitWithTimeout(absl::Condition(&there), timeout)) return std::nullopt;
    fate_ = fate;
    running_ = next_->epoch;
    return std::exchange(next_, std::nullopt);
  }
  bool WentOn(int32_t epoch) const {
    MutexLock lock(&mu_);
    return went_on_ >= epoch;
  }
  // The epoch that was taken is over; its fate may go.
  void Over() {
    MutexLock lock(&mu_);
    fate_ = nullptr;
  }

 private:
  mutable Mutex mu_;
  std::optional<EpochOrder> next_ ABSL_GUARDED_BY(mu_);
  int32_t last_epoch_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t went_on_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t running_ ABSL_GUARDED_BY(mu_) = 0;
  EpochFate* fate_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace rempart::worker
