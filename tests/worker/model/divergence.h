// SPDX-License-Identifier: Apache-2.0
// How far one distribution over the vocabulary is from another.
#pragma once

#include <algorithm>
#include <cmath>

#include "absl/types/span.h"

namespace rempart::worker {

// sum p log(p / q) of two rows of logits, in nats.
inline double Divergence(absl::Span<const float> p, absl::Span<const float> q) {
  const auto log_sum = [](absl::Span<const float> row) {
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const float x : row) sum += std::exp(x - largest);
    return largest + std::log(sum);
  };
  const double log_p = log_sum(p);
  const double log_q = log_sum(q);
  double divergence = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    divergence += std::exp(p[i] - log_p) * ((p[i] - log_p) - (q[i] - log_q));
  }
  return divergence;
}

}  // namespace rempart::worker
