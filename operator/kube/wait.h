// SPDX-License-Identifier: Apache-2.0
// A pause that a stop request ends.
#pragma once

#include <condition_variable>
#include <mutex>
#include <stop_token>

#include "absl/time/time.h"
#include "common/clock.h"

namespace rempart::op {

inline void PauseUnlessStopped(std::stop_token stop, absl::Duration pause) {
  std::mutex mu;
  std::condition_variable_any changed;
  std::unique_lock<std::mutex> lock(mu);
  changed.wait_until(lock, stop, WaitEnd(pause), [] { return false; });
}

}  // namespace rempart::op
