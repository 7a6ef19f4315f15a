// SPDX-License-Identifier: Apache-2.0
// The bookkeeping behind Communicator::progress: written by the thread that calls collectives, read
// by any.
#pragma once

#include <atomic>
#include <chrono>

#include "worker/comm/communicator.h"

namespace rempart::worker {

class ActivityProbe {
 public:
  ActivityProbe() { Set(Activity::kIdle); }

  void Begin(Activity activity) {
    collectives_.fetch_add(1, std::memory_order_relaxed);
    Set(activity);
  }
  void End() {
    SetWaiting(0);
    Set(Activity::kIdle);
  }
  // Bit r: rank r's part has not come.
  void SetWaiting(uint64_t ranks) { waiting_.store(ranks, std::memory_order_relaxed); }

  int64_t collectives() const { return collectives_.load(std::memory_order_relaxed); }

  CommunicatorProgress Read() const {
    const uint64_t word = activity_since_.load(std::memory_order_relaxed);
    const uint64_t waiting = waiting_.load(std::memory_order_relaxed);
    CommunicatorProgress progress;
    progress.activity = static_cast<Activity>(word >> kTimeBits);
    progress.age_ms = static_cast<int64_t>((NowMicros() - word) & kTimeMask) / 1000;
    progress.collectives = collectives();
    for (int rank = 0; rank < kMaxRanks; ++rank) {
      if (waiting >> rank & 1) progress.waiting_for_ranks.push_back(rank);
    }
    return progress;
  }

 private:
  static constexpr int kTimeBits = 56;
  static constexpr uint64_t kTimeMask = (uint64_t{1} << kTimeBits) - 1;

  static uint64_t NowMicros() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(
               std::chrono::duration_cast<std::chrono::microseconds>(now).count()) &
           kTimeMask;
  }
  void Set(Activity activity) {
    activity_since_.store(static_cast<uint64_t>(activity) << kTimeBits | NowMicros(),
                          std::memory_order_relaxed);
  }

  // Activity and the microsecond that it began in one word, so that no reader mixes two of them.
  std::atomic<uint64_t> activity_since_;
  std::atomic<int64_t> collectives_ = 0;
  std::atomic<uint64_t> waiting_ = 0;
};

}  // namespace rempart::worker
