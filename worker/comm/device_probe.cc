// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/device_probe.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr int64_t kCount = 64;
constexpr int64_t kBytes = kCount * sizeof(float);

}  // namespace

absl::StatusOr<SumProbe> SumProbe::Make(Device& device) {
  SumProbe probe(device);
  ASSIGN_OR_RETURN(probe.values_, DeviceBuffer::Make(device, kBytes));
  ASSIGN_OR_RETURN(probe.host_, PinnedBuffer::Make(device, kBytes));
  return probe;
}

absl::Status SumProbe::Run(DeviceCommunicator& communicator) {
  auto* const numbers = host_.as<float>();
  const auto share = [](int rank, int64_t i) { return static_cast<float>((rank + 1) * (i + 1)); };
  for (int64_t i = 0; i < kCount; ++i) numbers[i] = share(communicator.rank(), i);
  device_->CopyIn(values_.as<void>(), numbers, kBytes);
  RETURN_IF_ERROR(communicator.AllReduceSum(values_.as<void>(), kCount, DeviceNumber::kF32));
  device_->CopyOut(numbers, values_.as<void>(), kBytes);
  RETURN_IF_ERROR(communicator.Finish());
  for (int64_t i = 0; i < kCount; ++i) {
    // Whole numbers below 2^24: exact in any order.
    float expected = 0;
    for (int rank = 0; rank < communicator.size(); ++rank) expected += share(rank, i);
    if (numbers[i] == expected) continue;
    return absl::InternalError(
        absl::StrCat("the GPUs of the group add wrongly: ", numbers[i], " instead of ", expected));
  }
  return absl::OkStatus();
}

absl::Status ProbeSum(Device& device, DeviceCommunicator& communicator) {
  ASSIGN_OR_RETURN(SumProbe probe, SumProbe::Make(device));
  return probe.Run(communicator);
}

}  // namespace rempart::worker
