// SPDX-License-Identifier: Apache-2.0
#include "worker/device/device.h"

#include <cstring>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/hash.h"

namespace rempart::worker {
namespace {

constexpr char kUnavailableMark[] = "rempart.dev/device-unavailable";
constexpr char kNotRecordedMark[] = "rempart.dev/not-recorded";
// An odd number: the checksum's last word is not whole.
constexpr int64_t kCheckedBytes = (int64_t{256} << 10) + 5;

}  // namespace

absl::Status DeviceUnavailable(absl::string_view message) {
  absl::Status status = absl::UnavailableError(message);
  status.SetPayload(kUnavailableMark, absl::Cord());
  return status;
}

bool IsDeviceUnavailable(const absl::Status& status) {
  return status.GetPayload(kUnavailableMark).has_value();
}

absl::Status NotRecorded(absl::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kNotRecordedMark, absl::Cord());
  return status;
}

bool IsNotRecorded(const absl::Status& status) {
  return status.GetPayload(kNotRecordedMark).has_value();
}

absl::Status CheckDevice(Device& device) {
  ASSIGN_OR_RETURN(const PinnedBuffer given, PinnedBuffer::Make(device, kCheckedBytes));
  ASSIGN_OR_RETURN(const PinnedBuffer taken, PinnedBuffer::Make(device, kCheckedBytes));
  ASSIGN_OR_RETURN(const PinnedBuffer sum, PinnedBuffer::Make(device, sizeof(uint64_t)));
  ASSIGN_OR_RETURN(const DeviceBuffer data, DeviceBuffer::Make(device, kCheckedBytes));
  ASSIGN_OR_RETURN(const DeviceBuffer sum_there, DeviceBuffer::Make(device, sizeof(uint64_t)));
  for (int64_t i = 0; i < kCheckedBytes; ++i) {
    given.as<uint8_t>()[i] = static_cast<uint8_t>(kernels::HashMix(static_cast<uint64_t>(i)));
  }
  device.CopyIn(data.as<void>(), given.as<void>(), kCheckedBytes);
  device.ops().hash({data.as<void>(), kCheckedBytes, sum_there.as<uint64_t>()}, device.stream());
  device.CopyOut(sum.as<void>(), sum_there.as<void>(), sizeof(uint64_t));
  device.CopyOut(taken.as<void>(), data.as<void>(), kCheckedBytes);
  RETURN_IF_ERROR(device.Finish());
  const char* wrong = nullptr;
  if (std::memcmp(given.as<void>(), taken.as<void>(), kCheckedBytes) != 0) {
    wrong = "gives back other bytes than it was given";
  } else if (*sum.as<uint64_t>() != kernels::cuda::HashBytes(given.as<void>(), kCheckedBytes)) {
    wrong = "adds up a checksum wrong";
  }
  if (wrong == nullptr) return absl::OkStatus();
  return DeviceUnavailable(absl::StrCat(
      device.Describe(), " ", wrong,
      ": the GPU, its memory or its link is broken; see what the driver says (nvidia-smi -q, the "
      "kernel's log for NVRM), reset or replace it, and keep pods off the node until then"));
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::Make(Device& device, int64_t bytes) {
  DeviceBuffer buffer;
  ASSIGN_OR_RETURN(buffer.data_, device.Allocate(bytes));
  buffer.device_ = &device;
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) device_->Free(data_);
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Make(Device& device, int64_t bytes) {
  PinnedBuffer buffer;
  ASSIGN_OR_RETURN(buffer.data_, device.AllocatePinned(bytes));
  buffer.device_ = &device;
  buffer.bytes_ = bytes;
  return buffer;
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) device_->FreePinned(data_);
}

}  // namespace rempart::worker
