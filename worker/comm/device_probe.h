// SPDX-License-Identifier: Apache-2.0
// The first collective of a communicator: proves that all ranks are there and that sums come out
// right, before anything depends on it.
#pragma once

#include "absl/status/status.h"
#include "worker/comm/device_communicator.h"

namespace rempart::worker {

// Sums a few numbers over all ranks. Internal when the sum is wrong; else the communicator's error.
absl::Status ProbeSum(Device& device, DeviceCommunicator& communicator);

}  // namespace rempart::worker
