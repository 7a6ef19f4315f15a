// SPDX-License-Identifier: Apache-2.0
// Waits for what other threads bring about.
#pragma once

#include <chrono>
#include <thread>

namespace rempart::op {

// Whether `condition` becomes true within ten seconds.
template <typename Condition>
bool Eventually(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace rempart::op
