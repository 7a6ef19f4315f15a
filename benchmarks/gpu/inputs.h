// SPDX-License-Identifier: Apache-2.0
// Token ids and block tables that a seed makes, and the time since.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "kernels/ops.h"

namespace rempart::benchmarks {

inline constexpr int64_t kBlock = kernels::kKvBlockTokens;

inline int64_t BlocksOf(int64_t tokens) { return (tokens + kBlock - 1) / kBlock; }

inline double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(SteadyNow() - start); }

inline std::vector<int32_t> SeededIds(int64_t count, int64_t vocabulary, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    id = static_cast<int32_t>((seed >> 33) % static_cast<uint64_t>(vocabulary));
  }
  return ids;
}

inline std::vector<int32_t> BlockTable(int64_t first, int64_t count) {
  std::vector<int32_t> blocks(static_cast<size_t>(count));
  std::iota(blocks.begin(), blocks.end(), static_cast<int32_t>(first));
  return blocks;
}

}  // namespace rempart::benchmarks
