// SPDX-License-Identifier: Apache-2.0
// The part of NVML's ABI that is used (NVML API reference, "Device Queries", "NvLink Methods",
// "Event Handling Methods"). Its header comes with a toolkit, which a build does not need.
#pragma once

extern "C" {
using NvmlHandle = struct NvmlOpaque*;
using NvmlEventSet = struct NvmlOpaqueEventSet*;

struct NvmlPciInfo {
  char bus_id_legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
struct NvmlMemory {
  unsigned long long total, free, used;
};
struct NvmlEvent {
  NvmlHandle device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
};
}

inline constexpr int kNvmlSuccess = 0;
inline constexpr int kNvmlTimeout = 10;
inline constexpr unsigned long long kNvmlEventXid = 8;
inline constexpr unsigned kNvmlMaxLinks = 18;

// X(member, symbol, parameters); all return int.
#define REMPART_NVML(X)                                                                     \
  X(init, "nvmlInit_v2", ())                                                                \
  X(shutdown, "nvmlShutdown", ())                                                           \
  X(driver_version, "nvmlSystemGetDriverVersion", (char*, unsigned))                        \
  X(count, "nvmlDeviceGetCount_v2", (unsigned*))                                            \
  X(handle, "nvmlDeviceGetHandleByIndex_v2", (unsigned, NvmlHandle*))                       \
  X(name, "nvmlDeviceGetName", (NvmlHandle, char*, unsigned))                               \
  X(uuid, "nvmlDeviceGetUUID", (NvmlHandle, char*, unsigned))                               \
  X(pci, "nvmlDeviceGetPciInfo_v3", (NvmlHandle, NvmlPciInfo*))                             \
  X(memory, "nvmlDeviceGetMemoryInfo", (NvmlHandle, NvmlMemory*))                           \
  X(ecc_errors, "nvmlDeviceGetTotalEccErrors", (NvmlHandle, int, int, unsigned long long*)) \
  X(link_state, "nvmlDeviceGetNvLinkState", (NvmlHandle, unsigned, int*))                   \
  X(link_peer, "nvmlDeviceGetNvLinkRemotePciInfo_v2", (NvmlHandle, unsigned, NvmlPciInfo*)) \
  X(make_events, "nvmlEventSetCreate", (NvmlEventSet*))                                     \
  X(free_events, "nvmlEventSetFree", (NvmlEventSet))                                        \
  X(watch, "nvmlDeviceRegisterEvents", (NvmlHandle, unsigned long long, NvmlEventSet))      \
  X(wait, "nvmlEventSetWait_v2", (NvmlEventSet, NvmlEvent*, unsigned))
