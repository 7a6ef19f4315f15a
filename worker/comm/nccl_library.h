// SPDX-License-Identifier: Apache-2.0
// NCCL, loaded at run time: it comes with a node's CUDA libraries or with the image, so this
// compiles everywhere, and where the library is missing, Load says so.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/comm/device_communicator.h"
#include "worker/comm/nccl_abi.h"

namespace rempart::worker {

// The oldest that is taken, as ncclGetVersion counts: 2.30.
inline constexpr int kOldestNccl = 23000;

class Nccl : public CollectiveLibrary {
 public:
  // `library` may be empty: the loader's path. DeviceUnavailable, saying what to do, when it is
  // missing, too old or without a function that is needed. Its environment is another's business
  // (nccl_environment.h), and comes first.
  static absl::StatusOr<std::unique_ptr<Nccl>> Load(const std::string& library);

  std::string Describe() const override;
  // Where the library knows symmetric memory, of ncclMemAlloc.
  absl::StatusOr<void*> Allocate(Device& device, int64_t bytes) override;
  void Free(Device& device, void* memory) override;
  absl::StatusOr<std::string> NewId() override;
  absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Connect(
      Device& device, const DevicePlace& place, const DeviceCommunicatorOptions& options,
      const std::stop_token& stop) override;

 private:
  Nccl(const NcclFunctions& functions, int version) : functions_(functions), version_(version) {}

  const NcclFunctions functions_;
  const int version_;
};

}  // namespace rempart::worker
