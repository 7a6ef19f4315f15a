// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/nccl_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/comm/device_probe.h"
#include "worker/comm/nccl_communicator.h"

namespace rempart::worker {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";
constexpr int64_t kZeroedAtOnce = 4 << 20;
constexpr char kFix[] =
    ". A group of several ranks on GPUs needs NCCL 2.30 or later: put its libnccl.so.2 (of "
    "NVIDIA's package libnccl2, or of nvidia-nccl-cu13 from PyPI) where the loader finds it, such "
    "as on LD_LIBRARY_PATH, or set parallelism.tensor to 1";

// 23203 is 2.32.3.
std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Nccl>> Nccl::Load(const std::string& library) {
  void* const handle = dlopen(library.empty() ? kLibrary : library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return DeviceUnavailable(absl::StrCat("NCCL cannot be loaded: ", dlerror(), kFix));
  }
  NcclFunctions nccl;
  nccl.get_version = reinterpret_cast<int (*)(int*)>(dlsym(handle, "ncclGetVersion"));
  int version = 0;
  if (nccl.get_version == nullptr || nccl.get_version(&version) != kNcclSuccess) {
    return DeviceUnavailable(absl::StrCat("this NCCL does not tell its version", kFix));
  }
  if (version < kOldestNccl) {
    return DeviceUnavailable(absl::StrCat("NCCL ", VersionText(version), " is too old", kFix));
  }
#define REMPART_FIND(member, symbol, result, parameters)                                 \
  nccl.member = reinterpret_cast<result(*) parameters>(dlsym(handle, symbol));           \
  if (nccl.member == nullptr) {                                                          \
    return DeviceUnavailable(                                                            \
        absl::StrCat("NCCL ", VersionText(version), " has no function ", symbol, kFix)); \
  }
  REMPART_NCCL(REMPART_FIND)
#undef REMPART_FIND
  nccl.has_windows = true;
#define REMPART_FIND(member, symbol, result, parameters)                       \
  nccl.member = reinterpret_cast<result(*) parameters>(dlsym(handle, symbol)); \
  nccl.has_windows &= nccl.member != nullptr;
  REMPART_NCCL_WINDOWS(REMPART_FIND)
#undef REMPART_FIND
  return std::unique_ptr<Nccl>(new Nccl(nccl, version));
}

std::string Nccl::Describe() const { return absl::StrCat("NCCL ", VersionText(version_)); }

absl::StatusOr<void*> Nccl::Allocate(Device& device, int64_t bytes) {
  if (!functions_.has_windows) return device.Allocate(bytes);
  ASSIGN_OR_RETURN(const PinnedBuffer zeros,
                   PinnedBuffer::Make(device, std::min(bytes, kZeroedAtOnce)));
  void* memory = nullptr;
  int result = kNcclSuccess;
  device.Launch([&] {
    result = functions_.memory_allocate(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  });
  if (result != kNcclSuccess) {
    ASSIGN_OR_RETURN(const DeviceMemory left, device.Memory());
    return absl::ResourceExhaustedError(
        absl::StrCat("NCCL cannot allocate ", bytes >> 20, " MiB on the GPU, of which ",
                     left.free_bytes >> 20, " MiB are free: ", functions_.error_text(result)));
  }
  for (int64_t at = 0; at < bytes; at += kZeroedAtOnce) {
    device.CopyIn(static_cast<uint8_t*>(memory) + at, zeros.as<void>(),
                  std::min(kZeroedAtOnce, bytes - at));
  }
  const absl::Status zeroed = device.Finish();
  if (zeroed.ok()) return memory;
  Free(device, memory);
  return zeroed;
}

void Nccl::Free(Device& device, void* memory) {
  if (!functions_.has_windows) return device.Free(memory);
  device.Launch([&] { functions_.memory_free(memory); });
}

absl::StatusOr<std::string> Nccl::NewId() {
  NcclUniqueId id = {};
  if (const int result = functions_.get_unique_id(&id); result != kNcclSuccess) {
    return NcclError(functions_, nullptr, "making an id of the group", result);
  }
  return std::string(id.bytes, sizeof(id.bytes));
}

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Nccl::Connect(
    Device& device, const DevicePlace& place, const DeviceCommunicatorOptions& options,
    const std::stop_token& stop) {
  NcclUniqueId id = {};
  if (place.id.size() != sizeof(id.bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the id of a group on GPUs has ", sizeof(id.bytes), " bytes, not ", place.id.size()));
  }
  std::memcpy(id.bytes, place.id.data(), sizeof(id.bytes));
  auto made = std::make_unique<NcclCommunicator>(functions_, device, place.group->rank(),
                                                 place.group->size(), options);
  RETURN_IF_ERROR(made->Connect(id, stop));
  RETURN_IF_ERROR(ProbeSum(device, *made));
  return std::unique_ptr<DeviceCommunicator>(std::move(made));
}

}  // namespace rempart::worker
