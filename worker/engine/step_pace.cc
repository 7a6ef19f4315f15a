// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/step_pace.h"

#include <algorithm>

namespace rempart::worker {
namespace {

// Weight of the newest step: the cost of a token grows with its position, and follows.
constexpr double kNewest = 0.3;
constexpr int32_t kLeastTokens = 16;
// Before anything has been measured.
constexpr int32_t kFirstTokens = 64;
// A measurement of fewer tokens says more about the rest of the step.
constexpr int32_t kMeasurableTokens = 8;
// Of a step's time, what its prefill is taken to need at least: decodes may have become cheaper.
constexpr double kLeastShare = 0.1;

void Blend(double& average, double value) {
  average = average == 0 ? value : average + kNewest * (value - average);
}

}  // namespace

void StepPace::Observe(int32_t decodes, int32_t prefill_tokens, absl::Duration took) {
  const double seconds = absl::ToDoubleSeconds(took);
  if (seconds <= 0) return;
  if (prefill_tokens == 0) {
    if (decodes > 0) Blend(decode_seconds_, seconds);
    return;
  }
  if (prefill_tokens < kMeasurableTokens) return;
  const double prefill =
      decodes == 0 ? seconds : std::max(seconds - decode_seconds_, kLeastShare * seconds);
  Blend(per_token_seconds_, prefill / prefill_tokens);
}

int32_t StepPace::PrefillTokensBesideDecodes(int32_t most) const {
  if (bound_ <= absl::ZeroDuration()) return most;
  const int32_t least = std::min(kLeastTokens, most);
  if (per_token_seconds_ == 0) return std::clamp(kFirstTokens, least, most);
  const double room = std::max(absl::ToDoubleSeconds(bound_) - decode_seconds_, decode_seconds_);
  const double tokens = room / per_token_seconds_;
  return tokens >= most ? most : std::max(least, static_cast<int32_t>(tokens));
}

}  // namespace rempart::worker
