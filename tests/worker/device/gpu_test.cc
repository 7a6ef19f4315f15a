// SPDX-License-Identifier: Apache-2.0
#include "worker/device/gpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "worker/device/nvml.h"

namespace rempart::worker {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Holds in a build without CUDA, in one with it on a machine without a GPU, and on any other: none
// has so many.
TEST(OpenGpu, SaysWhyThereIsNoneAndWhatToDo) {
  const absl::Status refused = OpenGpu(1000).status();
  EXPECT_TRUE(IsDeviceUnavailable(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr("GPU 1000 cannot be used: "), HasSubstr("set device: cpu")));
}

// As many as OpenGpu opens: none where it opens none.
TEST(FindGpus, AgreesWithOpenGpu) {
  const auto found = FindGpuAddresses();
  EXPECT_EQ(found.ok(), FindGpus().ok());
  if (!found.ok()) {
    EXPECT_TRUE(IsDeviceUnavailable(found.status())) << found.status();
    EXPECT_FALSE(OpenGpu(0).ok());
    return;
  }
  EXPECT_FALSE(OpenGpu(static_cast<int>(found->size())).ok());
  for (const std::string& address : *found) EXPECT_NE(CanonicalPciBusId(address), "") << address;
}

TEST(DeviceUnavailable, IsToldFromOtherThingsThatAreUnavailable) {
  EXPECT_TRUE(IsDeviceUnavailable(DeviceUnavailable("no driver")));
  EXPECT_TRUE(absl::IsUnavailable(DeviceUnavailable("no driver")));
  EXPECT_FALSE(IsDeviceUnavailable(absl::UnavailableError("cannot read")));
  EXPECT_FALSE(IsDeviceUnavailable(absl::OkStatus()));
}

}  // namespace
}  // namespace rempart::worker
