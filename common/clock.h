// SPDX-License-Identifier: Apache-2.0
// Time as a dependency, so that tests decide what time it is.
#pragma once

#include "absl/time/time.h"

namespace rempart {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The machine's clock; any thread.
class SystemClock : public Clock {
 public:
  absl::Time Now() const override;
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
