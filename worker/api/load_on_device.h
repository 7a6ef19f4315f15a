// SPDX-License-Identifier: Apache-2.0
// A model on the GPUs of this pod, one for each rank, behind the interface that the engine knows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/api/worker_status.h"
#include "worker/config/worker_config.h"
#include "worker/device/gpu.h"
#include "worker/group/rank_model.h"
#include "worker/model/device_transformer.h"

namespace rempart::worker {

// One rank's GPU, and what it holds once loaded.
struct DevicePart {
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceTransformer> transformer;
};

// Of every rank of the pod, in their order.
absl::StatusOr<std::vector<DevicePart>> OpenGpus(const WorkerSettings& settings,
                                                 const GpuOpener& open_gpu);

// Of one rank. Where its stage has several, its reserve holds what their communicators take, too.
DeviceModelOptions DeviceOptions(const WorkerSettings& settings, int64_t context_length);

// Takes all the memory that the rank will use on its GPU, and copies the weights there. Refuses,
// before it takes any, what does not fit: with the bytes of weights, workspaces and KV cache, and
// those that are free.
// `library` links the GPUs of a stage, and outlives the part; null: there is but one.
absl::Status LoadOnDevice(const ModelConfig& config, const Weights& weights,
                          const DeviceModelOptions& options, CollectiveLibrary* library,
                          const UploadOptions& upload, DevicePart& part);

// Of a loaded part. A device that breaks while it computes ends the process: its errors are sticky,
// and whoever restarts the process may find it mended, or another one. The status, which outlives
// the rank, says so first.
std::unique_ptr<RankModel> MakeRankOnDevice(DevicePart part, WorkerStatus* status);

}  // namespace rempart::worker
