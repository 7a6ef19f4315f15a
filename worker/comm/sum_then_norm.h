// SPDX-License-Identifier: Apache-2.0
// DeviceCommunicator::AllReduceNorm in two steps, where the sum is a library's.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "worker/comm/device_communicator.h"

namespace rempart::worker {

// Every row of the branch is added up, also those that norm.rows does not name.
absl::Status SumThenNorm(Device& device, DeviceCommunicator& communicator,
                         const kernels::AddNormArgs& norm, int64_t num_tokens);

}  // namespace rempart::worker
