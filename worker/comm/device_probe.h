// SPDX-License-Identifier: Apache-2.0
// The first collective of a communicator: proves that all ranks are there and that sums come out
// right, before anything depends on it.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/device_communicator.h"

namespace rempart::worker {

// Ranks that share a GPU and a process make theirs before any of them runs: making and freeing
// memory may wait for kernels that wait for the other rank.
class SumProbe {
 public:
  static absl::StatusOr<SumProbe> Make(Device& device);
  // Sums a few numbers over all ranks. Internal when the sum is wrong; else the communicator's
  // error.
  absl::Status Run(DeviceCommunicator& communicator);

 private:
  explicit SumProbe(Device& device) : device_(&device) {}

  Device* device_;
  DeviceBuffer values_;
  PinnedBuffer host_;
};

// Both.
absl::Status ProbeSum(Device& device, DeviceCommunicator& communicator);

}  // namespace rempart::worker
