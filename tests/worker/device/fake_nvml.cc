// SPDX-License-Identifier: Apache-2.0
// The libnvidia-ml of fake_nvml.h. Built three times: whole, without a function that is needed
// (REMPART_FAKE_NVML_TOO_OLD), and without those that may be missing (REMPART_FAKE_NVML_OLD).
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "worker/device/nvml_abi.h"

namespace {

constexpr int kNotSupported = 3;
constexpr unsigned kMostGpus = 3;

struct Gpu {
  long long ecc = 0, remap_pending = 0, remap_failed = 0, recovery = 0, lost = 0, used_mib = 1024;
};

struct Driver {
  Gpu gpus[kMostGpus];
  long long count = kMostGpus, no_events = 0, stuck_ms = 0;
  std::deque<NvmlEvent> events;
};

std::mutex mu;
std::condition_variable raised;
Driver driver;
std::atomic<int> opened = 0;

unsigned IndexOf(NvmlHandle handle) {
  return static_cast<unsigned>(reinterpret_cast<unsigned long>(handle)) - 1;
}
NvmlHandle HandleOf(unsigned index) {
  return reinterpret_cast<NvmlHandle>(static_cast<unsigned long>(index) + 1);
}
Gpu GpuOf(NvmlHandle handle) {
  std::lock_guard<std::mutex> lock(mu);
  return driver.gpus[IndexOf(handle)];
}

}  // namespace

extern "C" {
void fake_nvml_reset() {
  std::lock_guard<std::mutex> lock(mu);
  driver = {};
  driver.gpus[1].ecc = 4;
}
void fake_nvml_raise(unsigned gpu, unsigned long long xid) {
  std::lock_guard<std::mutex> lock(mu);
  driver.events.push_back({HandleOf(gpu), kNvmlEventXid, xid, 0, 0});
  raised.notify_all();
}
bool fake_nvml_set(const char* what, unsigned gpu, long long value) {
  std::lock_guard<std::mutex> lock(mu);
  Gpu& one = driver.gpus[gpu];
  const struct {
    const char* name;
    long long* place;
  } places[] = {{"gpus", &driver.count},
                {"no_events", &driver.no_events},
                {"stuck_ms", &driver.stuck_ms},
                {"ecc", &one.ecc},
                {"remap_pending", &one.remap_pending},
                {"remap_failed", &one.remap_failed},
                {"recovery", &one.recovery},
                {"lost", &one.lost},
                {"used_mib", &one.used_mib}};
  for (const auto& place : places) {
    if (std::strcmp(place.name, what) != 0) continue;
    *place.place = value;
    return true;
  }
  return false;
}
int fake_nvml_open_count() { return opened; }

int nvmlInit_v2() {
  ++opened;
  return 0;
}
int nvmlShutdown() {
  --opened;
  return 0;
}
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  std::snprintf(text, size, "580.65.06");
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  std::lock_guard<std::mutex> lock(mu);
  *count = static_cast<unsigned>(driver.count);
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
int nvmlDeviceGetMemoryInfo(NvmlHandle handle, NvmlMemory* memory) {
  const Gpu gpu = GpuOf(handle);
  if (gpu.lost != 0) return kNvmlGpuIsLost;
  const auto used = static_cast<unsigned long long>(gpu.used_mib) << 20;
  *memory = {150ull << 30, (150ull << 30) - used, used};
  return 0;
}
int nvmlDeviceGetTotalEccErrors(NvmlHandle handle, int type, int counter,
                                unsigned long long* errors) {
  if (IndexOf(handle) == 2 || type != kNvmlUncorrected) return kNotSupported;
  const auto since_load = static_cast<unsigned long long>(GpuOf(handle).ecc);
  *errors = counter == kNvmlVolatile ? since_load : since_load + 10;
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
#ifndef REMPART_FAKE_NVML_TOO_OLD
int nvmlEventSetCreate(NvmlEventSet* set) {
  *set = reinterpret_cast<NvmlEventSet>(8);
  return 0;
}
#endif
int nvmlEventSetFree(NvmlEventSet) { return 0; }
int nvmlDeviceRegisterEvents(NvmlHandle, unsigned long long types, NvmlEventSet) {
  std::lock_guard<std::mutex> lock(mu);
  return types == kNvmlEventXid && driver.no_events == 0 ? 0 : kNotSupported;
}
int nvmlEventSetWait_v2(NvmlEventSet, NvmlEvent* event, unsigned wait_ms) {
  std::unique_lock<std::mutex> lock(mu);
  if (driver.stuck_ms > 0) {
    const std::chrono::milliseconds stuck(driver.stuck_ms);
    lock.unlock();
    std::this_thread::sleep_for(stuck);
    lock.lock();
  }
  if (driver.events.empty()) raised.wait_for(lock, std::chrono::milliseconds(wait_ms));
  if (driver.events.empty()) return kNvmlTimeout;
  *event = driver.events.front();
  driver.events.pop_front();
  return 0;
}

#ifndef REMPART_FAKE_NVML_OLD
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 13010;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(NvmlHandle handle, int* major, int* minor) {
  *major = IndexOf(handle) < 2 ? 9 : 8;
  *minor = IndexOf(handle) < 2 ? 0 : 9;
  return 0;
}
int nvmlDeviceGetMigMode(NvmlHandle handle, unsigned* mode, unsigned* pending) {
  *mode = *pending = IndexOf(handle) == 1 ? 1 : 0;
  return IndexOf(handle) == 2 ? kNotSupported : 0;
}
int nvmlDeviceGetRemappedRows(NvmlHandle handle, unsigned* corrected, unsigned* uncorrected,
                              unsigned* pending, unsigned* failed) {
  const Gpu gpu = GpuOf(handle);
  *corrected = *uncorrected = 0;
  *pending = static_cast<unsigned>(gpu.remap_pending);
  *failed = static_cast<unsigned>(gpu.remap_failed);
  return 0;
}
int nvmlDeviceGetTemperature(NvmlHandle handle, int, unsigned* celsius) {
  *celsius = 40 + IndexOf(handle);
  return 0;
}
int nvmlDeviceGetPowerUsage(NvmlHandle handle, unsigned* milliwatts) {
  *milliwatts = 120'500;
  return IndexOf(handle) == 2 ? kNotSupported : 0;
}
int nvmlDeviceGetCurrentClocksEventReasons(NvmlHandle handle, unsigned long long* reasons) {
  *reasons = IndexOf(handle) == 1 ? 0x45 : 0x1;  // idle; power cap and thermal beside
  return 0;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(NvmlHandle, unsigned, int* kind) {
  *kind = kNvmlLinkToSwitch;
  return 0;
}
int nvmlDeviceGetTopologyCommonAncestor(NvmlHandle one, NvmlHandle other, int* level) {
  *level = IndexOf(one) + IndexOf(other) == 1 ? 30 : 50;
  return 0;
}
int nvmlDeviceGetFieldValues(NvmlHandle handle, int count, NvmlFieldValue* values) {
  for (int i = 0; i < count; ++i) {
    values[i].code = values[i].field == kNvmlFieldRecoveryAction ? 0 : kNotSupported;
    values[i].value = static_cast<unsigned long long>(GpuOf(handle).recovery);
  }
  return 0;
}
#endif
}
