// SPDX-License-Identifier: Apache-2.0
// What `rempart doctor` says of GPUs, over a library that is loaded like the driver's.
#include "cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
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

// Where `rempart serve` puts its sockets, not only /tmp.
TEST(Doctor, NamesTheFolderThatIsUsed) {
  const char* const before = std::getenv("XDG_RUNTIME_DIR");
  const std::string kept = before == nullptr ? "" : before;
  const auto said = [](const std::string& folder) {
    setenv("XDG_RUNTIME_DIR", folder.c_str(), 1);
    testing::internal::CaptureStdout();
    EXPECT_TRUE(CheckFolder());
    return testing::internal::GetCapturedStdout();
  };
  const std::string own = testing::TempDir() + "/doctor_" + std::to_string(getpid());
  std::filesystem::create_directories(own);
  EXPECT_EQ(said(own), "ok    folder: " + own + " is writable\n");
  std::filesystem::remove_all(own);
  EXPECT_EQ(said(own), "ok    folder: /tmp is writable\n");
  before == nullptr ? unsetenv("XDG_RUNTIME_DIR") : setenv("XDG_RUNTIME_DIR", kept.c_str(), 1);
}

}  // namespace
}  // namespace rempart::cli
