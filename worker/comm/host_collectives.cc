// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/host_collectives.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "worker/comm/device_probe.h"
#include "worker/comm/sum_then_norm.h"

namespace rempart::worker {
namespace {

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// To the nearest, ties to even.
uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

class HostDeviceCommunicator : public DeviceCommunicator {
 public:
  HostDeviceCommunicator(Device& device, Communicator& group) : device_(device), group_(group) {}

  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }

  absl::Status AllReduceSum(void* values, int64_t count, DeviceNumber type) override {
    return Queue([this, values, count, type] {
      return type == DeviceNumber::kF32 ? group_.AllReduceSum(static_cast<float*>(values), count)
                                        : ReduceBf16(static_cast<uint16_t*>(values), count);
    });
  }

  absl::Status AllReduceNorm(const kernels::AddNormArgs& norm, int64_t num_tokens) override {
    return SumThenNorm(device_, *this, norm, num_tokens);
  }

  absl::Status AllGather(const void* own, void* all, int64_t bytes) override {
    return Queue([this, own, all, bytes] {
      std::memcpy(static_cast<uint8_t*>(all) + rank() * bytes, own, static_cast<size_t>(bytes));
      std::vector<int64_t> offsets;
      for (int64_t rank = 0; rank <= size(); ++rank) offsets.push_back(rank * bytes);
      return group_.AllGather({all, 1, size() * bytes, offsets});
    });
  }

  absl::Status Finish() override { return UnlessLost(device_.Finish()); }
  absl::Status Await(int place) override { return UnlessLost(device_.Await(place)); }

  void Abort(const absl::Status& why) override { group_.Abort(why, -1); }
  absl::Status status() const override { return group_.status(); }

 private:
  absl::Status UnlessLost(const absl::Status& finished) const {
    RETURN_IF_ERROR(group_.status());
    return finished;
  }

  // An error stays in the group's communicator, where Finish finds it.
  template <class Call>
  absl::Status Queue(Call call) {
    RETURN_IF_ERROR(group_.status());
    device_.Launch([call] { call().IgnoreError(); });
    return group_.status();
  }

  // Added in F32, rounded once.
  absl::Status ReduceBf16(uint16_t* values, int64_t count) {
    scratch_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) scratch_[i] = FromBf16(values[i]);
    RETURN_IF_ERROR(group_.AllReduceSum(scratch_.data(), count));
    for (int64_t i = 0; i < count; ++i) values[i] = ToBf16(scratch_[i]);
    return absl::OkStatus();
  }

  Device& device_;
  Communicator& group_;
  std::vector<float> scratch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> HostCollectives::Connect(
    Device& device, const DevicePlace& place, const DeviceCommunicatorOptions&,
    const std::stop_token&) {
  auto made = std::make_unique<HostDeviceCommunicator>(device, *place.group);
  RETURN_IF_ERROR(ProbeSum(device, *made));
  return std::unique_ptr<DeviceCommunicator>(std::move(made));
}

}  // namespace rempart::worker
