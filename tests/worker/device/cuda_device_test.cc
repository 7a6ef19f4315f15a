// SPDX-License-Identifier: Apache-2.0
// A GPU as a Device, over a CUDA runtime that is made for tests: which errors of CUDA pass and
// which stay, what is recorded, and that every call names its GPU. Kernels run over the emulator.
#include "worker/device/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <utility>

#include "tests/worker/device/fake_cuda.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kNoLibrary[] = "/nowhere/libcublasLt.so";

class CudaDeviceTest : public ::testing::Test {
 protected:
  CudaDeviceTest() {
    FakeCuda().results.clear();
    FakeCuda().is_busy = false;
    FakeCuda().gpus_reach_each_other = true;
    FakeCuda().complaint.clear();
  }
  ~CudaDeviceTest() override {
    FakeCuda().broken = cudaSuccess;
    cudaGetLastError();
    EXPECT_EQ(FakeCuda().complaint, "");
    EXPECT_EQ(FakeCuda().alive, 0) << "given back";
  }

  static std::unique_ptr<Device> Open(int ordinal = 0, const char* library = kNoLibrary) {
    auto device = OpenCudaDevice({.ordinal = ordinal, .blas_library = library});
    EXPECT_TRUE(device.ok()) << device.status();
    return *std::move(device);
  }
};

TEST_F(CudaDeviceTest, OpensAndComputes) {
  const std::unique_ptr<Device> device = Open();
  EXPECT_THAT(device->Describe(), HasSubstr("Fake GPU (sm_90, 132 SMs), without cuBLASLt: "));
  EXPECT_TRUE(CheckDevice(*device).ok());
  const auto found = FindCudaDevices();
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)[0].pci_bus_id, "0000:1b:00.0");
  EXPECT_EQ((*found)[0].clock_hz, 1'500'000'000);
  EXPECT_THAT((*found)[1].reaches, ElementsAre(0));
}

TEST_F(CudaDeviceTest, WhatAGpuDoesNotTellOfItselfIsNoErrorOfIts) {
  FakeCuda().results = {{"cudaDeviceGetAttribute", cudaErrorInvalidValue},
                        {"cudaDeviceCanAccessPeer", cudaErrorInvalidValue}};
  const std::unique_ptr<Device> device = Open();
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(CheckDevice(*device).ok());
}

TEST_F(CudaDeviceTest, AMachineWithoutAGpuSaysWhatIsMissing) {
  FakeCuda().results = {{"cudaGetDeviceCount", cudaErrorInsufficientDriver}};
  EXPECT_THAT(std::string(FindCudaDevices().status().message()), HasSubstr("no NVIDIA driver"));
  FakeCuda().results = {{"cudaGetDeviceCount", cudaErrorNoDevice}};
  EXPECT_THAT(std::string(FindCudaDevices().status().message()), HasSubstr("no NVIDIA GPU"));
  FakeCuda().results.clear();
  EXPECT_EQ(OpenCudaDevice({.ordinal = 2, .blas_library = ""}).status().message(),
            "no GPU 2: there are 2");
}

TEST_F(CudaDeviceTest, ProductsOfManyTokensGoToTheLibrary) {
  const std::unique_ptr<Device> device = Open(0, REMPART_FAKE_CUBLAS_LT);
  EXPECT_THAT(device->Describe(), HasSubstr("cuBLASLt "));
  constexpr int64_t kTokens = 16, kRows = 16, kCols = 32;
  const auto make = [&](int64_t bytes) { return *DeviceBuffer::Make(*device, bytes); };
  const DeviceBuffer w = make(kRows * kCols * 2), x = make(kTokens * kCols * 2),
                     y = make(kTokens * kRows * 4);
  std::fill_n(w.as<uint16_t>(), kRows * kCols, 0x3f80);    // 1
  std::fill_n(x.as<uint16_t>(), kTokens * kCols, 0x4000);  // 2
  kernels::DeviceMatmulArgs args;
  args.w.data = w.as<void>();
  args.w.rows = kRows;
  args.w.cols = args.x_stride = kCols;
  args.x = x.as<uint16_t>();
  args.y = y.as<void>();
  args.y_stride = kRows;
  args.y_is_f32 = true;
  for (const int64_t tokens : {kernels::kMatvecTokens, kTokens}) {
    args.num_tokens = tokens;
    ASSERT_TRUE(device->Matmul(args).ok());
    ASSERT_TRUE(device->Finish().ok());
    EXPECT_EQ(device->library_products(), tokens == kTokens ? 1 : 0);
    EXPECT_EQ(y.as<float>()[tokens * kRows - 1], 2.0f * kCols);
  }
}

TEST_F(CudaDeviceTest, WhatIsRecordedHappensWhenItIsStarted) {
  const std::unique_ptr<Device> device = Open();
  const PinnedBuffer host = *PinnedBuffer::Make(*device, 8);
  const DeviceBuffer memory = *DeviceBuffer::Make(*device, 8);
  *host.as<int64_t>() = 5;
  const auto graph = device->Record([&] {
    device->CopyIn(memory.as<void>(), host.as<void>(), 8);
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(*memory.as<int64_t>(), 0);
  for (const int64_t value : {6, 7}) {
    *host.as<int64_t>() = value;
    ASSERT_TRUE(device->Start(**graph).ok());
    ASSERT_TRUE(device->Finish().ok());
    EXPECT_EQ(*memory.as<int64_t>(), value);
  }
}

// A step runs while the next one is recorded, so the device is asked for errors in the middle of
// its work.
TEST_F(CudaDeviceTest, AGraphThatIsNotMadeLeavesADeviceThatWorks) {
  for (const bool is_busy : {false, true}) {
    for (const char* call : {"cudaStreamBeginCapture", "cudaStreamEndCapture",
                             "cudaGraphInstantiate", "cudaGraphUpload"}) {
      const std::unique_ptr<Device> device = Open();
      FakeCuda().is_busy = is_busy;
      FakeCuda().results = {{call, cudaErrorMemoryAllocation}};
      const auto graph = device->Record([] { return absl::OkStatus(); });
      FakeCuda().results.clear();
      EXPECT_TRUE(IsNotRecorded(graph.status())) << call << ": " << graph.status();
      EXPECT_THAT(std::string(graph.status().message()), HasSubstr(call));
      EXPECT_TRUE(device->Check().ok()) << call << ", " << is_busy << ": " << device->Check();
      EXPECT_TRUE(device->Finish().ok());
      EXPECT_TRUE(device->Record([] { return absl::OkStatus(); }).ok()) << "the next one is made";
    }
  }
}

TEST_F(CudaDeviceTest, WhatCannotBeRecordedIsForgottenWithTheRecording) {
  const std::unique_ptr<Device> device = Open();
  FakeCuda().is_busy = true;
  const std::pair<const char*, std::function<absl::Status()>> kinds[] = {
      {"a launch that fails",
       [] {
         FailFakeLaunch(cudaErrorInvalidConfiguration);
         return absl::OkStatus();
       }},
      {"a call that is not allowed", [&] {
         device->Allocate(8).status().IgnoreError();
         return absl::OkStatus();
       }}};
  for (const auto& [kind, record] : kinds) {
    EXPECT_TRUE(IsNotRecorded(device->Record(record).status())) << kind;
    EXPECT_TRUE(device->Check().ok()) << kind << ": " << device->Check();
  }
  const auto failing = [&] {
    FailFakeLaunch(cudaErrorInvalidConfiguration);
    return absl::AbortedError("a rank has gone");
  };
  EXPECT_EQ(device->Record(failing).status(), absl::AbortedError("a rank has gone"));
  EXPECT_TRUE(device->Finish().ok());
}

TEST_F(CudaDeviceTest, AGpuThatBreaksWhileItRecordsStaysBroken) {
  const std::unique_ptr<Device> device = Open();
  const auto graph = device->Record([] {
    FakeCuda().broken = cudaErrorIllegalAddress;
    return absl::OkStatus();
  });
  EXPECT_FALSE(IsNotRecorded(graph.status()));
  EXPECT_THAT(std::string(device->Check().message()), HasSubstr("cudaErrorIllegalAddress"));
  FakeCuda().broken = cudaSuccess;
  EXPECT_THAT(std::string(device->Finish().message()), HasSubstr("cudaErrorIllegalAddress"))
      << "the first error stays";
}

TEST_F(CudaDeviceTest, HostMemoryThatIsNotThereIsNoErrorOfTheDevice) {
  const std::unique_ptr<Device> device = Open();
  FakeCuda().is_busy = true;
  FakeCuda().results = {{"cudaMallocHost", cudaErrorMemoryAllocation}};
  EXPECT_TRUE(absl::IsResourceExhausted(device->AllocatePinned(8).status()));
  FakeCuda().results.clear();
  EXPECT_TRUE(device->Check().ok()) << device->Check();
}

TEST_F(CudaDeviceTest, ThatAGpuHasNoRoomIsSaidInFiguresAndForgotten) {
  const std::unique_ptr<Device> device = Open();
  const absl::Status refused = device->Allocate(int64_t{3} << 30).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "the GPU has no room for 3072 MiB: 1024 MiB are free");
  EXPECT_TRUE(device->Check().ok()) << device->Check();
  EXPECT_TRUE(DeviceBuffer::Make(*device, 8).ok());
  FakeCuda().broken = cudaErrorIllegalAddress;
  const absl::Status broken = device->Allocate(8).status();
  EXPECT_EQ(broken.code(), absl::StatusCode::kInternal) << "no lack of room";
  EXPECT_THAT(std::string(broken.message()), HasSubstr("cudaErrorIllegalAddress"));
  FakeCuda().broken = cudaSuccess;  // so that its memory is given back
}

// As a kernel that could not be launched leaves it, which no later call mentions.
TEST_F(CudaDeviceTest, AnErrorFromBeforeOutlivesACallThatMayFail) {
  struct Row {
    const char* call;
    std::function<void(Device& device, const MemoryShare& of_gpu, const MemoryShare& of_process)>
        run;
  };
  const Row rows[] = {
      {"cudaMalloc", [](Device& device, auto&, auto&) { EXPECT_FALSE(device.Allocate(8).ok()); }},
      {"cudaMallocHost",
       [](Device& device, auto&, auto&) { EXPECT_FALSE(device.AllocatePinned(8).ok()); }},
      {"cudaIpcGetMemHandle",
       [](Device& device, auto&, auto&) { EXPECT_TRUE(device.ShareMemory(64).ok()); }},
      {"cudaIpcOpenMemHandle",
       [](Device& device, auto&, auto& of_process) {
         EXPECT_FALSE(device.OpenShared(of_process).ok());
       }},
      {"cudaDeviceCanAccessPeer",
       [](Device& device, auto& of_gpu, auto&) { EXPECT_FALSE(device.OpenShared(of_gpu).ok()); }},
      {"cudaDeviceEnablePeerAccess",
       [](Device& device, auto& of_gpu, auto&) { EXPECT_FALSE(device.OpenShared(of_gpu).ok()); }}};
  for (const Row& row : rows) {
    for (const bool is_earlier : {false, true}) {
      SCOPED_TRACE(testing::Message() << row.call << (is_earlier ? " after a launch" : ""));
      const std::unique_ptr<Device> device = Open(), other = Open(1);
      MemoryShare of_process = device->ShareMemory(64)->share;
      of_process[8] ^= 1;
      const MemoryShare of_gpu = other->ShareMemory(64)->share;
      ASSERT_TRUE(device->Check().ok());
      FakeCuda().results = {{row.call, cudaErrorMemoryAllocation}};
      if (is_earlier) FailFakeLaunch(cudaErrorInvalidConfiguration);
      row.run(*device, of_gpu, of_process);
      FakeCuda().results.clear();
      const absl::Status kept = device->Check();
      EXPECT_EQ(kept.ok(), !is_earlier) << kept;
      if (is_earlier) {
        EXPECT_THAT(std::string(kept.message()), HasSubstr("cudaErrorInvalidConfiguration"));
      }
    }
  }
}

TEST_F(CudaDeviceTest, ATriedLaunchThatFailsIsForgottenUnlessItBreaksTheGpu) {
  const std::unique_ptr<Device> device = Open();
  EXPECT_TRUE(device->Try([] {}).ok());
  const absl::Status failed = device->Try([] { FailFakeLaunch(cudaErrorInvalidConfiguration); });
  EXPECT_THAT(std::string(failed.message()), HasSubstr("cudaErrorInvalidConfiguration"));
  EXPECT_TRUE(device->Finish().ok());
  EXPECT_FALSE(device->Try([] { FakeCuda().broken = cudaErrorIllegalAddress; }).ok());
  FakeCuda().broken = cudaSuccess;
  EXPECT_FALSE(device->Check().ok());
}

// CUDA's current GPU is the thread's, and another rank of the process may have been there.
TEST_F(CudaDeviceTest, EveryCallNamesItsGpu) {
  const std::unique_ptr<Device> other = Open(0), device = Open(1);
  const PinnedBuffer host = *PinnedBuffer::Make(*device, 8);
  const DeviceBuffer memory = *DeviceBuffer::Make(*device, 8);
  const auto nothing = [] { return absl::OkStatus(); };
  const auto graph = device->Record(nothing);
  MemoryShare share = {};
  const std::pair<const char*, std::function<absl::Status()>> calls[] = {
      {"Memory", [&] { return device->Memory().status(); }},
      {"Allocate", [&] { return DeviceBuffer::Make(*device, 8).status(); }},
      {"AllocatePinned", [&] { return PinnedBuffer::Make(*device, 8).status(); }},
      {"CopyIn",
       [&] {
         device->CopyIn(memory.as<void>(), host.as<void>(), 8);
         return absl::OkStatus();
       }},
      {"CopyOut",
       [&] {
         device->CopyOut(host.as<void>(), memory.as<void>(), 8);
         return absl::OkStatus();
       }},
      {"ShareMemory",
       [&] {
         const auto shared = device->ShareMemory(64);
         if (shared.ok()) share = shared->share;
         return shared.status();
       }},
      {"Record", [&] { return device->Record(nothing).status(); }},
      {"Start", [&] { return device->Start(**graph); }},
      {"Try", [&] { return device->Try([] {}); }},
      {"Check", [&] { return device->Check(); }},
      {"Finish", [&] { return device->Finish(); }},
      {"Mark",
       [&] {
         device->Mark(1);
         return absl::OkStatus();
       }},
      {"Await", [&] { return device->Await(1); }}};
  // The second time, too: some calls do less then.
  for (int time = 0; time < 2; ++time) {
    for (const auto& [name, call] : calls) {
      ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
      const absl::Status status = call();
      EXPECT_TRUE(status.ok()) << name << ": " << status;
      EXPECT_EQ(FakeCurrentGpu(), 1) << name;
    }
  }
  EXPECT_TRUE(device->Check().ok()) << device->Check();
}

TEST_F(CudaDeviceTest, RanksOfOneProcessReachEachOthersMemory) {
  const std::unique_ptr<Device> one = Open(0), other = Open(1);
  const auto shared = one->ShareMemory(64);
  ASSERT_TRUE(shared.ok());
  for (int time = 0; time < 2; ++time) {  // peer access is there already
    const auto opened = other->OpenShared(shared->share);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*opened, shared->memory);
    other->CloseShared(*opened);
  }
  FakeCuda().gpus_reach_each_other = false;
  FakeCuda().is_busy = true;
  EXPECT_TRUE(absl::IsUnavailable(other->OpenShared(shared->share).status()));
  FakeCuda().results = {{"cudaDeviceCanAccessPeer", cudaErrorInvalidDevice}};
  EXPECT_FALSE(other->OpenShared(shared->share).ok());
  FakeCuda().results.clear();
  EXPECT_TRUE(other->Finish().ok());
}

TEST_F(CudaDeviceTest, RanksOfOtherProcessesReachItByAHandle) {
  const std::unique_ptr<Device> device = Open();
  const auto shared = device->ShareMemory(64);
  ASSERT_TRUE(shared.ok());
  MemoryShare of_other = shared->share;
  of_other[8] ^= 1;  // another process of this machine
  const auto opened = device->OpenShared(of_other);
  ASSERT_TRUE(opened.ok()) << opened.status();
  device->CloseShared(*opened);
  FakeCuda().results = {{"cudaIpcOpenMemHandle", cudaErrorNotSupported}};
  EXPECT_TRUE(absl::IsUnavailable(device->OpenShared(of_other).status()));
  of_other[0] ^= 1;
  EXPECT_EQ(device->OpenShared(of_other).status().message(), "the GPUs are of several machines");
  FakeCuda().results = {{"cudaIpcGetMemHandle", cudaErrorNotSupported}};
  const auto own = device->ShareMemory(64);
  ASSERT_TRUE(own.ok()) << "it is for this process alone";
  of_other = own->share;
  of_other[8] ^= 1;
  EXPECT_THAT(std::string(device->OpenShared(of_other).status().message()),
              HasSubstr("does not let its memory be shared"));
  EXPECT_TRUE(device->Finish().ok());
}

}  // namespace
}  // namespace rempart::worker
