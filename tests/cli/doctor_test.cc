// SPDX-License-Identifier: Apache-2.0
// What `rempart doctor` says of GPUs, over a library that is loaded like the driver's.
#include "cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/worker/device/fake_nvml.h"

namespace rempart::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Said(const std::string& library) {
  testing::internal::CaptureStdout();
  CheckGpus(library);
  return testing::internal::GetCapturedStdout();
}

TEST(Doctor, NamesTheGpusAndTheirDriver) {
  const worker::FakeNvml driver(REMPART_FAKE_NVML);
  const std::string said = Said(REMPART_FAKE_NVML);
  EXPECT_THAT(said, StartsWith("ok    GPUs: 3, driver 580.65.06, CUDA 13.1; device: gpu needs"));
  EXPECT_THAT(said, HasSubstr(" GPU 00000000:11:00.0: NVIDIA H200, 153600 MiB, MIG, compute "
                              "capability 9.0"));
  EXPECT_THAT(said, HasSubstr(": NVIDIA L4, "));
}

TEST(Doctor, SaysWhatAGpuNeedsFirst) {
  worker::FakeNvml driver(REMPART_FAKE_NVML);
  driver.Set("recovery", 0, 2);
  EXPECT_THAT(Said(REMPART_FAKE_NVML),
              HasSubstr("capability 9.0: it cannot be used before this machine is rebooted"));
}

TEST(Doctor, SaysWhyThereAreNone) {
  EXPECT_THAT(Said("/nowhere/libnvidia-ml.so.1"),
              StartsWith("note  GPUs: none (no NVIDIA driver: /nowhere/libnvidia-ml.so.1: "));
  EXPECT_THAT(Said("/nowhere/libnvidia-ml.so.1"), HasSubstr("): models run with device: cpu\n"));
}

}  // namespace
}  // namespace rempart::cli
