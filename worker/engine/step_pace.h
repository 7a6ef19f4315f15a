// SPDX-License-Identifier: Apache-2.0
// How many tokens of prefill fit into a step beside decodes, from the time that steps took. A step
// is taken to last `decode + prefill_tokens * per_token`; both terms are moving averages. The
// engine measures; this computes. Engine thread only.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace rempart::worker {

class StepPace {
 public:
  // A step with decodes is to last at most `bound`, or twice a step of decodes alone where that is
  // longer, so that prefill advances on slow machines too. Zero: no bound.
  explicit StepPace(absl::Duration bound) : bound_(bound) {}

  void Observe(int32_t decodes, int32_t prefill_tokens, absl::Duration took);

  // At least one block of 16, at most `most`.
  int32_t PrefillTokensBesideDecodes(int32_t most) const;
  // 0 before the first measurement.
  double prefill_tokens_per_second() const {
    return per_token_seconds_ > 0 ? 1 / per_token_seconds_ : 0;
  }

 private:
  const absl::Duration bound_;
  double decode_seconds_ = 0;
  double per_token_seconds_ = 0;
};

}  // namespace rempart::worker
