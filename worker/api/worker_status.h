// SPDX-License-Identifier: Apache-2.0
// Where a worker process stands between start and end, as the Join stream, /readyz and /metrics
// tell it. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace rempart::worker {

enum class Phase { kStarting, kLoading, kWarmingUp, kReady, kDraining, kFailed };

const char* PhaseName(Phase phase);

// One part of a start. Parts overlap: the tokenizer is made while weights are repacked.
struct StartPart {
  std::string name;
  absl::Duration time;
};

struct StatusSnapshot {
  Phase phase = Phase::kStarting;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  std::string message = {};
  std::string reason = {};  // of kFailed, machine-readable
  std::string digest = {};
  std::vector<StartPart> start_parts = {};
};

class WorkerStatus {
 public:
  void SetPhase(Phase phase) {
    MutexLock lock(&mu_);
    snapshot_.phase = phase;
  }
  void SetLoaded(int64_t bytes_done, int64_t bytes_total) {
    MutexLock lock(&mu_);
    snapshot_.bytes_done = bytes_done;
    snapshot_.bytes_total = bytes_total;
  }
  void SetDigest(std::string digest) {
    MutexLock lock(&mu_);
    snapshot_.digest = std::move(digest);
  }
  void AddStartPart(std::string name, absl::Duration time) {
    MutexLock lock(&mu_);
    snapshot_.start_parts.push_back({std::move(name), time});
  }
  void Fail(std::string reason, std::string message) {
    MutexLock lock(&mu_);
    snapshot_.phase = Phase::kFailed;
    snapshot_.reason = std::move(reason);
    snapshot_.message = std::move(message);
  }
  // Returns when the phase is another one, or after `timeout`.
  void AwaitPhaseAfter(Phase last, absl::Duration timeout) const {
    const auto changed = [&]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return snapshot_.phase != last; };
    MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&changed), timeout);
  }
  StatusSnapshot snapshot() const {
    MutexLock lock(&mu_);
    return snapshot_;
  }

 private:
  mutable Mutex mu_;
  StatusSnapshot snapshot_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::worker
