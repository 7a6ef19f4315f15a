// SPDX-License-Identifier: Apache-2.0
// What every implementation of Communicator must do. An implementation instantiates the suite with
// the way to make a group of it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "worker/comm/mesh_communicator.h"

namespace rempart::worker {

using Group = std::vector<std::unique_ptr<Communicator>>;

struct CommunicatorKind {
  std::string name;
  std::function<Group(int size, const CommunicatorOptions& options)> make;
};

class CommunicatorContract : public ::testing::TestWithParam<CommunicatorKind> {
 protected:
  // A deadline that no test waits for.
  static CommunicatorOptions Patient() {
    CommunicatorOptions options;
    options.timeout = std::chrono::minutes(5);
    return options;
  }
  Group Make(int size, const CommunicatorOptions& options = Patient()) const {
    return GetParam().make(size, options);
  }
};

// Runs body(communicator) for all ranks at once.
inline void OnAllRanks(Group& group, const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  for (auto& communicator : group) threads.emplace_back([&] { body(*communicator); });
  for (std::thread& thread : threads) thread.join();
}

// Waits, without a bound on time, until the rank waits for `ranks` in `activity`.
inline void AwaitWaiting(const Communicator& communicator, const std::vector<int>& ranks,
                         Activity activity = Activity::kBarrier) {
  for (;;) {
    const CommunicatorProgress progress = communicator.progress();
    if (progress.activity == activity && progress.waiting_for_ranks == ranks) return;
    std::this_thread::yield();
  }
}

// A number with a full mantissa, so that sums in another order have other bits.
inline float Value(int rank, int64_t index) {
  const uint32_t mixed = static_cast<uint32_t>(index * 2654435761u + rank * 40503u + 12345u);
  return static_cast<float>(static_cast<int32_t>(mixed * 2246822519u)) * 1e-7f;
}

}  // namespace rempart::worker
