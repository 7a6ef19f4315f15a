// SPDX-License-Identifier: Apache-2.0
#include "worker/group/fabric.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "common/status_macros.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kLatencyRounds = 21;
constexpr int kBandwidthRounds = 4;
constexpr int64_t kLatencyFloats = (4 << 10) / sizeof(float);
constexpr int64_t kBandwidthFloats = (1 << 20) / sizeof(float);

int64_t MicrosecondsSince(SteadyClock::time_point start) {
  return std::max<int64_t>(
      1, std::chrono::duration_cast<std::chrono::microseconds>(SteadyClock::now() - start).count());
}

absl::StatusOr<int64_t> TimeAllReduce(Communicator& communicator, std::vector<float>& values,
                                      int64_t count) {
  const auto start = SteadyClock::now();
  RETURN_IF_ERROR(communicator.AllReduceSum(values.data(), count));
  return MicrosecondsSince(start);
}

absl::Status MeasureRank(Communicator& communicator, FabricFigures& figures) {
  std::vector<float> values(kBandwidthFloats, 0.0f);
  RETURN_IF_ERROR(communicator.Barrier());
  std::vector<int64_t> times;
  for (int i = 0; i < kLatencyRounds; ++i) {
    ASSIGN_OR_RETURN(const int64_t time, TimeAllReduce(communicator, values, kLatencyFloats));
    times.push_back(time);
  }
  std::nth_element(times.begin(), times.begin() + kLatencyRounds / 2, times.end());
  figures.all_reduce_microseconds = static_cast<int32_t>(times[kLatencyRounds / 2]);
  int64_t best = INT64_MAX;
  for (int i = 0; i < kBandwidthRounds; ++i) {
    ASSIGN_OR_RETURN(const int64_t time, TimeAllReduce(communicator, values, kBandwidthFloats));
    best = std::min(best, time);
  }
  figures.mib_per_second = static_cast<int32_t>(1'000'000 / best);
  return absl::OkStatus();
}

// `body` on a thread per rank of this pod; the first error of any.
template <typename Body>
absl::Status OnEachRank(const std::vector<std::unique_ptr<Communicator>>& communicators,
                        const Body& body) {
  std::vector<absl::Status> results(communicators.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < communicators.size(); ++i) {
    threads.emplace_back([&, i] { results[i] = body(i, *communicators[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FabricFigures> MeasureFabric(
    const std::vector<std::unique_ptr<Communicator>>& communicators) {
  std::vector<FabricFigures> figures(communicators.size());
  if (communicators.empty() || communicators[0]->size() == 1) return FabricFigures{};
  RETURN_IF_ERROR(OnEachRank(communicators, [&](size_t i, Communicator& communicator) {
    return MeasureRank(communicator, figures[i]);
  }));
  return figures[0];
}

int32_t MicrosecondsPerToken(const FabricFigures& figures, const TokenTraffic& traffic) {
  if (figures.mib_per_second == 0) return 0;
  const double extra_bytes =
      std::max<double>(0, static_cast<double>(traffic.hidden) * 4 - (4 << 10));
  const double microseconds =
      figures.all_reduce_microseconds + extra_bytes / (1 << 20) / figures.mib_per_second * 1e6;
  const int64_t in_layers = traffic.tensor > 1 ? 2 * traffic.layers : 0;
  return static_cast<int32_t>(static_cast<double>(in_layers + traffic.stages) * microseconds);
}

absl::StatusOr<int32_t> AgreeOnLeast(
    const std::vector<std::unique_ptr<Communicator>>& communicators, int32_t mine) {
  if (communicators.empty()) return mine;
  int32_t least = mine;
  RETURN_IF_ERROR(OnEachRank(communicators, [&](size_t i, Communicator& communicator) {
    const int size = communicator.size();
    std::vector<int32_t> all(size, 0);
    std::vector<int64_t> offsets;
    for (int rank = 0; rank <= size; ++rank) {
      offsets.push_back(static_cast<int64_t>(rank * sizeof(int32_t)));
    }
    all[communicator.rank()] = mine;
    Shares shares;
    shares.data = all.data();
    shares.stride_bytes = static_cast<int64_t>(size * sizeof(int32_t));
    shares.offsets = offsets;
    RETURN_IF_ERROR(communicator.AllGather(shares));
    if (i == 0) least = *std::min_element(all.begin(), all.end());
    return absl::OkStatus();
  }));
  return least;
}

}  // namespace rempart::worker
