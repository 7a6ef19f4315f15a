// SPDX-License-Identifier: Apache-2.0
// What each of two ranks does in benchmarks/gpu/run, wherever it runs: as a thread beside the other
// or as a process of its own. The ranks' host communicator brings them together, as in a worker.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "benchmarks/gpu/result.h"
#include "benchmarks/gpu/shapes.h"
#include "worker/comm/communicator.h"
#include "worker/comm/device_communicator.h"
#include "worker/device/device.h"

namespace rempart::benchmarks {

// One rank. All outlive the pair.
struct RankPlace {
  worker::CollectiveLibrary* library = nullptr;
  worker::Device* device = nullptr;
  worker::Communicator* host = nullptr;
  worker::DeviceCommunicatorOptions link = {};
};

// A communicator of this rank's device with the other's: rank 0 makes its id and tells it through
// the host communicator.
absl::StatusOr<std::unique_ptr<worker::DeviceCommunicator>> LinkPair(const RankPlace& place);

// What a note begins with that says why there are no sums in one shot.
inline constexpr char kNoOneShot[] = "no sums in one shot: ";

// The decoders that two ranks can share, computed by rank 0's device alone and by both: the same
// tokens, by the host from logits and sampled on the devices, step by step; and both ranks sample
// the same. For each decoder they are linked as a worker's ranks are. What is found is rank 0's.
absl::StatusOr<PartResult> ComparePairWithOne(const RankPlace& place,
                                              const std::vector<NamedConfig>& decoders);

// Links as well, and decodes until the communicator fails, which it aborts when the host's does, as
// a worker. Calls `on_steps` once decoding goes on, with why no sum is in one shot, if so. Returns
// why it ended.
absl::Status DecodeUntilLost(const RankPlace& place, const NamedConfig& decoder,
                             const std::function<void(const std::string& absence)>& on_steps);

// A way to add up BF16 values over both ranks, queued on this rank's device.
struct ReduceWay {
  std::string name;
  std::function<absl::Status(void* values, int64_t count)> queue;
};

// Microseconds of one all-reduce by each way and size, in recorded graphs of many, as decode steps
// hold them: NAME_SIZE. A sum that is wrong is told. `values` have room for the largest. All ranks
// call it with the same ways.
absl::StatusOr<PartResult> TimeAllReduces(const RankPlace& place, worker::DeviceCommunicator& link,
                                          const std::vector<ReduceWay>& ways,
                                          const std::vector<int64_t>& sizes_bytes, void* values);

// What linking has measured of sums with residual and norm, by NCCL and in one shot beside it, and
// up to which size a worker would send them so; or a note why there is no one shot here. That the
// measurement ended before `largest_bytes` is wrong.
PartResult OneShotResult(const worker::OneShotFacts& facts, int64_t largest_bytes);

}  // namespace rempart::benchmarks
