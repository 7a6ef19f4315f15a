// SPDX-License-Identifier: Apache-2.0
// The door to the GPUs of this machine. In a build with REMPART_CUDA it opens a CudaDevice; in any
// other it says that there is none. The one place that knows which of the two this binary is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/device/cuda_device.h"
#include "worker/device/device.h"

namespace rempart::worker {

// Opens the index-th GPU and checks it (CheckDevice). DeviceUnavailable when it cannot be had,
// ResourceExhausted when it is full already; the message says what to do.
using GpuOpener = std::function<absl::StatusOr<std::unique_ptr<Device>>(int index)>;

// As the driver counts those that it shows to this process.
absl::StatusOr<std::unique_ptr<Device>> OpenGpu(int index);

// All of them, in the same order. DeviceUnavailable when there are none.
absl::StatusOr<std::vector<CudaDeviceInfo>> FindGpus();
// Their PCI addresses.
absl::StatusOr<std::vector<std::string>> FindGpuAddresses();

}  // namespace rempart::worker
