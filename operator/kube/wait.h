// SPDX-License-Identifier: Apache-2.0
// A pause that a stop request ends.
#pragma once

#include <condition_variable>
#include <mutex>
#include <stop_token>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace rempart::op {

inline void PauseUnlessStopped(std::stop_token stop, absl::Duration pause) {
  std::mutex mu;
  std::condition_variable_any changed;
  std::unique_lock<std::mutex> lock(mu);
  // By the system's clock, as Mutex: of waits by the steady one GCC's thread sanitizer knows
  // nothing.
  changed.wait_until(lock, stop, absl::ToChronoTime(absl::Now() + pause), [] { return false; });
}

}  // namespace rempart::op
