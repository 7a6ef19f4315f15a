// SPDX-License-Identifier: Apache-2.0
#include "worker/device/device.h"

#include <utility>

#include "absl/strings/cord.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr char kUnavailableMark[] = "rempart.dev/device-unavailable";

}  // namespace

absl::Status DeviceUnavailable(absl::string_view message) {
  absl::Status status = absl::UnavailableError(message);
  status.SetPayload(kUnavailableMark, absl::Cord());
  return status;
}

bool IsDeviceUnavailable(const absl::Status& status) {
  return status.GetPayload(kUnavailableMark).has_value();
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
