// SPDX-License-Identifier: Apache-2.0
// How large a step is where nobody says so.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rempart::worker {

enum class DeviceKind { kCpu, kGpu };

// Tokens of a step where nobody says how many, of CPUs and of GPUs: enough for the products of a
// prompt to pay. Of many sequences more, so that decodes leave room for prompts.
inline constexpr int32_t kMostSequences = 4096;
inline constexpr int32_t kStepTokensOnCpu = 512;
inline constexpr int32_t kStepTokensOnGpu = 2048;
constexpr int32_t DefaultStepTokens(DeviceKind device, int32_t max_sequences) {
  return std::max(device == DeviceKind::kGpu ? kStepTokensOnGpu : kStepTokensOnCpu,
                  2 * std::min(max_sequences, kMostSequences));
}

// What a step with decodes takes at most.
inline constexpr int32_t kMaxStepMilliseconds = 100;

}  // namespace rempart::worker
