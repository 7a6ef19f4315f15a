// SPDX-License-Identifier: Apache-2.0
// Collectives of devices whose memory the host can read, such as the emulated one: over the ranks'
// own Communicator, in host memory. They are what the group's code is tested with where there is no
// GPU.
#pragma once

#include <memory>
#include <string>

#include "worker/comm/device_communicator.h"

namespace rempart::worker {

class HostCollectives : public CollectiveLibrary {
 public:
  std::string Describe() const override { return "the host's collectives"; }
  // Means nothing: the group's communicator has brought the ranks together already.
  absl::StatusOr<std::string> NewId() override { return std::string("host"); }
  // Deadlines are those of the group's communicator, which outlives what this returns.
  absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Connect(
      Device& device, const DevicePlace& place, const DeviceCommunicatorOptions& options,
      const std::stop_token& stop) override;
};

}  // namespace rempart::worker
