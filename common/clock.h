// SPDX-License-Identifier: Apache-2.0
// Time as a dependency, so that tests decide what time it is.
#pragma once

#include <algorithm>
#include <chrono>

#include "absl/time/time.h"

namespace rempart {

// What the clock on the wall showed when this process first asked, and what has passed since:
// nobody sets it, neither NTP, nor an administrator, nor a machine that resumes. Any thread.
absl::Time SteadyNow();

// When a wait of a standard condition variable ends that shall last this long, and no longer
// however the clock on the wall is set meanwhile.
inline auto WaitEnd(absl::Duration wait) {
  // Long enough for "for ever", and short enough to be added to the time.
  const auto left = absl::ToChronoNanoseconds(std::min(wait, absl::Hours(24 * 365)));
#if defined(__SANITIZE_THREAD__)
  // Of waits by the steady clock GCC's thread sanitizer knows nothing.
  return std::chrono::system_clock::now() + left;
#else
  return std::chrono::steady_clock::now() + left;
#endif
}

class Clock {
 public:
  virtual ~Clock() = default;
  // To wait and to measure by: it never jumps.
  virtual absl::Time Now() const = 0;
  // What others call the time, for what they read or have written; it may jump.
  virtual absl::Time WallNow() const { return Now(); }
};

// The machine's clocks; any thread.
class SystemClock : public Clock {
 public:
  absl::Time Now() const override;
  absl::Time WallNow() const override;
};

// Stands still until moved; for tests. Not thread-safe.
class ManualClock : public Clock {
 public:
  explicit ManualClock(absl::Time start = absl::FromUnixSeconds(1'700'000'000)) : now_(start) {}
  absl::Time Now() const override { return now_; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  absl::Time now_;
};

}  // namespace rempart
