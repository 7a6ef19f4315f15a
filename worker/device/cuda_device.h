// SPDX-License-Identifier: Apache-2.0
// A GPU as a Device: one context, one stream, cuBLASLt for large dense products where the library
// is found at run time. Compiled with REMPART_CUDA only; this header names nothing of CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/device/device.h"

namespace rempart::worker {

struct CudaDeviceOptions {
  int ordinal = 0;
  // Of cuBLASLt, in bytes; part of DeviceModelOptions::reserve_bytes.
  int64_t blas_workspace_bytes = int64_t{64} << 20;
  // Where libcublasLt lies; empty: the loader's path.
  std::string blas_library;
};

struct CudaDeviceInfo {
  int ordinal = 0;
  std::string name;
  std::string pci_bus_id;  // "0000:1b:00.0"
  int compute_major = 0;
  int compute_minor = 0;
  int multiprocessors = 0;
  int64_t clock_hz = 0;  // the highest; 0: unknown
  int64_t total_bytes = 0;
  int64_t memory_bytes_per_second = 0;  // of the data sheet: clock times bus width; 0: unknown
  std::vector<int> reaches;             // ordinals of the others whose memory its kernels may use
};

// NotFound where there is no GPU or no driver, saying which of the two.
absl::StatusOr<std::vector<CudaDeviceInfo>> FindCudaDevices();

// FailedPrecondition when this binary holds no code for the GPU's compute capability.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(const CudaDeviceOptions& options);

}  // namespace rempart::worker
