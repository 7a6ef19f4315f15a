// SPDX-License-Identifier: Apache-2.0
#include "common/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace rempart {

absl::Time SteadyNow() {
  struct Start {
    absl::Time wall = absl::Now();
    std::chrono::steady_clock::time_point steady = std::chrono::steady_clock::now();
  };
  static const Start start;
  return start.wall + absl::FromChrono(std::chrono::steady_clock::now() - start.steady);
}

absl::Time SystemClock::Now() const { return SteadyNow(); }
absl::Time SystemClock::WallNow() const { return absl::Now(); }

}  // namespace rempart
