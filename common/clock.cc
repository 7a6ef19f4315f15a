// SPDX-License-Identifier: Apache-2.0
#include "common/clock.h"

#include "absl/time/clock.h"

namespace rempart {

absl::Time SystemClock::Now() const { return absl::Now(); }

}  // namespace rempart
