// SPDX-License-Identifier: Apache-2.0
// A device that copies or computes wrong is refused, over the emulated one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/device/emulated_device.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

// Loses one bit of what is copied in, or of what is copied out beside the checksum.
class LossyDevice : public EmulatedDevice {
 public:
  LossyDevice() : EmulatedDevice(int64_t{1} << 20) {}
  void CopyIn(void* device, const void* host, int64_t bytes) override {
    EmulatedDevice::CopyIn(device, host, bytes);
    if (loses_in) static_cast<uint8_t*>(device)[bytes - 1] ^= 1;
  }
  void CopyOut(void* host, const void* device, int64_t bytes) override {
    EmulatedDevice::CopyOut(host, device, bytes);
    if (loses_out && bytes > 8) static_cast<uint8_t*>(host)[bytes / 2] ^= 0x80;
    // As if the bytes had been wrong while the checksum was made, and right again afterwards.
    if (loses_sum && bytes == 8) static_cast<uint8_t*>(host)[3] ^= 4;
  }
  bool loses_in = false, loses_out = false, loses_sum = false;
};

TEST(CheckDevice, ASoundOneIsTakenAndGetsItsMemoryBack) {
  LossyDevice device;
  EXPECT_TRUE(CheckDevice(device).ok());
  EXPECT_EQ(device.used_bytes(), 0);
}

TEST(CheckDevice, WhatCopiesOrComputesWrongIsRefused) {
  const struct {
    bool LossyDevice::*loses;
    const char* words;
  } rows[] = {{&LossyDevice::loses_in, "emulated GPU gives back other bytes than it was given"},
              {&LossyDevice::loses_out, "gives back other bytes"},
              {&LossyDevice::loses_sum, "adds up a checksum wrong: the GPU, its memory or its"}};
  for (const auto& row : rows) {
    LossyDevice device;
    device.*row.loses = true;
    const absl::Status status = CheckDevice(device);
    EXPECT_TRUE(IsDeviceUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.words));
    EXPECT_EQ(device.used_bytes(), 0);
  }
}

TEST(CheckDevice, OneThatIsFullSaysSo) {
  EmulatedDevice device(1 << 10);
  EXPECT_EQ(CheckDevice(device).code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace rempart::worker
