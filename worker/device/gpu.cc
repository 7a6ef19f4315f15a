// SPDX-License-Identifier: Apache-2.0
#include "worker/device/gpu.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {

#ifdef REMPART_WITH_CUDA

absl::StatusOr<std::unique_ptr<Device>> OpenGpu(int index) {
  CudaDeviceOptions options;
  options.ordinal = index;
  absl::StatusOr<std::unique_ptr<Device>> opened = OpenCudaDevice(options);
  const absl::Status status = opened.ok() ? CheckDevice(**opened) : opened.status();
  if (status.ok()) return opened;
  if (absl::IsResourceExhausted(status)) return status;
  const std::string what =
      absl::StrCat("GPU ", index, " cannot be used: ", std::string(status.message()));
  if (IsDeviceUnavailable(status)) return DeviceUnavailable(what);
  return DeviceUnavailable(
      absl::StrCat(what,
                   ". Run on a node whose NVIDIA driver shows enough GPUs to this process (in "
                   "Kubernetes: with NVIDIA's device plugin), or set device: cpu"));
}

absl::StatusOr<std::vector<CudaDeviceInfo>> FindGpus() {
  absl::StatusOr<std::vector<CudaDeviceInfo>> found = FindCudaDevices();
  if (!found.ok()) return DeviceUnavailable(found.status().message());
  return found;
}

#else

absl::StatusOr<std::unique_ptr<Device>> OpenGpu(int index) {
  return DeviceUnavailable(
      absl::StrCat("GPU ", index,
                   " cannot be used: this worker was built without CUDA. Take a "
                   "worker that was built with the cmake preset cuda, or set device: cpu"));
}

absl::StatusOr<std::vector<CudaDeviceInfo>> FindGpus() {
  return DeviceUnavailable("this binary was built without CUDA");
}

#endif

absl::StatusOr<std::vector<std::string>> FindGpuAddresses() {
  ASSIGN_OR_RETURN(const std::vector<CudaDeviceInfo> found, FindGpus());
  std::vector<std::string> addresses;
  for (const CudaDeviceInfo& device : found) addresses.push_back(device.pci_bus_id);
  return addresses;
}

}  // namespace rempart::worker
