// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/sum_then_norm.h"

#include "common/status_macros.h"

namespace rempart::worker {

absl::Status SumThenNorm(Device& device, DeviceCommunicator& communicator,
                         const kernels::AddNormArgs& norm, int64_t num_tokens) {
  RETURN_IF_ERROR(communicator.AllReduceSum(const_cast<uint16_t*>(norm.branch),
                                            num_tokens * norm.cols, DeviceNumber::kBF16));
  device.ops().add_norm(norm, device.stream());
  return absl::OkStatus();
}

}  // namespace rempart::worker
