// SPDX-License-Identifier: Apache-2.0
// A libnvidia-ml with two GPUs on one NVLink switch and one without links or ECC; GPU 1 has had an
// XID 79. Loaded by nvml_test.cc as the driver's would be.
#include <cstdio>
#include <cstring>

#include "worker/device/nvml_abi.h"

namespace {

constexpr int kNotSupported = 3;

unsigned IndexOf(NvmlHandle handle) {
  return static_cast<unsigned>(reinterpret_cast<unsigned long>(handle)) - 1;
}
NvmlHandle HandleOf(unsigned index) {
  return reinterpret_cast<NvmlHandle>(static_cast<unsigned long>(index) + 1);
}
int xids_left = 1;

}  // namespace

extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  std::snprintf(text, size, "580.65.06");
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 3;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, NvmlHandle* handle) {
  *handle = HandleOf(index);
  return 0;
}
int nvmlDeviceGetName(NvmlHandle handle, char* text, unsigned size) {
  std::snprintf(text, size, IndexOf(handle) < 2 ? "NVIDIA H200" : "NVIDIA L4");
  return 0;
}
int nvmlDeviceGetUUID(NvmlHandle handle, char* text, unsigned size) {
  std::snprintf(text, size, "GPU-%u", IndexOf(handle));
  return 0;
}
int nvmlDeviceGetPciInfo_v3(NvmlHandle handle, NvmlPciInfo* pci) {
  std::snprintf(pci->bus_id, sizeof(pci->bus_id), "00000000:%02X:00.0", 0x10 + IndexOf(handle));
  return 0;
}
int nvmlDeviceGetMemoryInfo(NvmlHandle, NvmlMemory* memory) {
  *memory = {150ull << 30, 149ull << 30, 1ull << 30};
  return 0;
}
int nvmlDeviceGetTotalEccErrors(NvmlHandle handle, int type, int counter,
                                unsigned long long* errors) {
  if (IndexOf(handle) == 2) return kNotSupported;
  *errors = type == 1 && counter == 0 ? IndexOf(handle) * 4 : 99;
  return 0;
}
int nvmlDeviceGetNvLinkState(NvmlHandle handle, unsigned link, int* active) {
  if (IndexOf(handle) == 2) return kNotSupported;
  *active = link < 2 ? 1 : 0;
  return 0;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(NvmlHandle, unsigned link, NvmlPciInfo* pci) {
  std::snprintf(pci->bus_id, sizeof(pci->bus_id), "00000000:C%u:00.0", link);
  return 0;
}
int nvmlEventSetCreate(NvmlEventSet* set) {
  *set = reinterpret_cast<NvmlEventSet>(8);
  return 0;
}
int nvmlEventSetFree(NvmlEventSet) { return 0; }
int nvmlDeviceRegisterEvents(NvmlHandle, unsigned long long types, NvmlEventSet) {
  return types == kNvmlEventXid ? 0 : kNotSupported;
}
int nvmlEventSetWait_v2(NvmlEventSet, NvmlEvent* event, unsigned) {
  if (xids_left == 0) return kNvmlTimeout;
  --xids_left;
  *event = {HandleOf(1), kNvmlEventXid, 79, 0, 0};
  return 0;
}
}
