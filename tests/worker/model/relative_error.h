// SPDX-License-Identifier: Apache-2.0
// How far logits are from those expected.
#pragma once

#include <cmath>
#include <vector>

namespace rempart::worker {

// Root mean square of the difference, relative to that of the expected numbers. Infinity where
// there are none, more or fewer than expected, or one is not finite.
inline double RelativeError(const std::vector<float>& actual, const std::vector<float>& expected) {
  if (actual.size() != expected.size() || expected.empty()) return INFINITY;
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
    size += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::isfinite(error) ? std::sqrt(error / size) : INFINITY;
}

}  // namespace rempart::worker
