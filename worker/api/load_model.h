// SPDX-License-Identifier: Apache-2.0
// From a model file or folder and the settings to a model that can serve: checks that all fits in
// memory before anything is allocated, and says the numbers when it does not. The file is hashed
// before the model serves where the settings name its digest, beside the repacking or, for GPUs, as
// its bytes pass, by the first rank of the pod; while it serves otherwise. GPUs,
// where the settings ask for them, are opened before anything is read, and where several share a
// stage so is what links them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/ops.h"
#include "worker/api/worker_process.h"
#include "worker/api/worker_status.h"
#include "worker/comm/device_communicator.h"
#include "worker/config/worker_config.h"
#include "worker/device/gpu.h"

namespace rempart::worker {

// DeviceUnavailable when the GPUs of a group cannot be linked, with what to do.
using CollectiveLoader = std::function<absl::StatusOr<std::unique_ptr<CollectiveLibrary>>()>;

// The kernels of a tier, or the best where `tier` is empty. FailedPrecondition, naming `field` and
// what there is, when this CPU lacks it.
absl::StatusOr<const kernels::Ops*> ChooseOps(absl::string_view field, const std::string& tier);

// What a CPU keeps keys and values in, by its name in manifests; "auto" is f16. None for a name
// that is not one of auto, f16, f32, bf16 and q8.
std::optional<kernels::DType> KvType(absl::string_view name);

absl::StatusOr<LoadedModel> LoadModelFile(const WorkerSettings& settings, const GpuOpener& open_gpu,
                                          const CollectiveLoader& load_collectives,
                                          WorkerStatus& status);

}  // namespace rempart::worker
