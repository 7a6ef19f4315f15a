// SPDX-License-Identifier: Apache-2.0
// Whether an epoch is over for this process, and why: told by whichever thread learns it first,
// from an order of the operator, a communicator, a Follow stream. Any thread.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"

namespace rempart::worker {

struct EpochEnd {
  std::string reason;
  int32_t blamed_rank = -1;  // -1: nobody
};

class EpochFate {
 public:
  // The first reason stays.
  void End(std::string reason, int32_t blamed_rank) {
    MutexLock lock(&mu_);
    if (!end_.has_value()) end_ = EpochEnd{std::move(reason), blamed_rank};
  }
  std::optional<EpochEnd> end() const {
    MutexLock lock(&mu_);
    return end_;
  }
  // Returns when it is over, or after `timeout`; true when it is over.
  bool Wait(absl::Duration timeout) const {
    MutexLock lock(&mu_);
    const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return end_.has_value(); };
    return mu_.AwaitWithTimeout(absl::Condition(&over), timeout);
  }

 private:
  mutable Mutex mu_;
  std::optional<EpochEnd> end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::worker
