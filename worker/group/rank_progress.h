// SPDX-License-Identifier: Apache-2.0
// How far a rank has come, for whoever watches it: written by the rank's thread, read by any. Times
// are of the monotonic clock.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "worker/comm/communicator.h"

namespace rempart::worker {

struct RankStatus {
  int32_t rank = 0;
  int32_t epoch = 0;
  int64_t step = 0;         // the last one that ended
  int64_t step_age_ms = 0;  // since it ended; 0 before the first
  std::string activity = "idle";
  int64_t activity_age_ms = 0;
  int64_t collectives = 0;
  std::vector<int32_t> waiting_for = {};
  // Of a rank in another pod: since that pod was heard; 0: of this process.
  int64_t heard_age_ms = 0;
};

class RankProgress {
 public:
  void BeginStep() { since_ = NowMs(), busy_ = true; }
  void EndStep(int64_t step) {
    step_ = step;
    busy_ = false;
    since_ = ended_ = NowMs();
  }

  // `communicator` may be null.
  RankStatus Read(int32_t rank, int32_t epoch, const Communicator* communicator) const {
    RankStatus status;
    const int64_t now = NowMs();
    status.rank = rank;
    status.epoch = epoch;
    status.step = step_;
    if (status.step > 0) status.step_age_ms = std::max<int64_t>(0, now - ended_);
    status.activity = busy_ ? "compute" : "idle";
    status.activity_age_ms = std::max<int64_t>(0, now - since_);
    if (communicator == nullptr) return status;
    const CommunicatorProgress progress = communicator->progress();
    status.collectives = progress.collectives;
    if (progress.activity == Activity::kIdle) {
      // Between two collectives of one step: since the last of them.
      status.activity_age_ms = std::min(status.activity_age_ms, progress.age_ms);
      return status;
    }
    status.activity = ActivityName(progress.activity);
    status.activity_age_ms = progress.age_ms;
    status.waiting_for.assign(progress.waiting_for_ranks.begin(), progress.waiting_for_ranks.end());
    return status;
  }

 private:
  static int64_t NowMs() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  std::atomic<int64_t> step_ = 0;
  std::atomic<int64_t> ended_ = 0;
  std::atomic<int64_t> since_ = NowMs();
  std::atomic<bool> busy_ = false;
};

}  // namespace rempart::worker
