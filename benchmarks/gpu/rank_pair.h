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
};

// A communicator of this rank's device with the other's: rank 0 makes its id and tells it through
// the host communicator.
absl::StatusOr<std::unique_ptr<worker::DeviceCommunicator>> LinkPair(
    const RankPlace& place, const worker::DeviceCommunicatorOptions& options);

// The decoders that two ranks can share, computed by rank 0's device alone and by both: the same
// tokens, by the host from logits and sampled on the devices, step by step; and both ranks sample
// the same. What is found is rank 0's.
absl::StatusOr<PartResult> ComparePairWithOne(const RankPlace& place,
                                              worker::DeviceCommunicator& link,
                                              const std::vector<NamedConfig>& decoders);

// Decodes until the communicator fails, which it aborts when the host's does, as a worker. Calls
// `on_steps` once decoding goes on. Returns why it ended.
absl::Status DecodeUntilLost(const RankPlace& place, worker::DeviceCommunicator& link,
                             const NamedConfig& decoder, const std::function<void()>& on_steps);

// A way to add up BF16 values over both ranks, queued on this rank's device.
struct ReduceWay {
  std::string name;
  std::function<absl::Status(void* values, int64_t count)> queue;
};

// Microseconds of one all-reduce by each way and size, in recorded graphs of many, as decode steps
// hold them: NAME_SIZE. A sum that is wrong is told. All ranks call it with the same ways.
absl::StatusOr<PartResult> TimeAllReduces(const RankPlace& place, worker::DeviceCommunicator& link,
                                          const std::vector<ReduceWay>& ways,
                                          const std::vector<int64_t>& sizes_bytes);

// What linking has measured of sums with residual and norm, by NCCL and in one shot beside it, and
// up to which size a worker would send them so; or a note why there is no one shot here.
PartResult OneShotResult(const worker::OneShotFacts& facts);

}  // namespace rempart::benchmarks
