// SPDX-License-Identifier: Apache-2.0
// The part of NVML's ABI that is used, with the layouts and values of nvml.h 13.3 (NVML API
// reference, "Device Queries", "NvLink Methods", "Field Value Queries", "Event Handling Methods").
// That header comes with a toolkit, which a build does not need.
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
struct NvmlFieldValue {
  unsigned field, scope;
  long long timestamp, latency;
  int value_type, code;
  unsigned long long value;  // a union; the smaller kinds lie in its first bytes
};
}

inline constexpr int kNvmlSuccess = 0;
inline constexpr int kNvmlTimeout = 10;
inline constexpr int kNvmlGpuIsLost = 15;
inline constexpr int kNvmlResetRequired = 16;
inline constexpr unsigned long long kNvmlEventXid = 8;
inline constexpr unsigned kNvmlMaxLinks = 36;
inline constexpr int kNvmlUncorrected = 1;  // NVML_MEMORY_ERROR_TYPE_UNCORRECTED
inline constexpr int kNvmlVolatile = 0;     // NVML_VOLATILE_ECC: since the driver was loaded
inline constexpr int kNvmlAggregate = 1;    // NVML_AGGREGATE_ECC: of the GPU's life
inline constexpr int kNvmlLinkToGpu = 0;    // nvmlIntNvLinkDeviceType_t
inline constexpr int kNvmlLinkToSwitch = 2;
inline constexpr unsigned kNvmlFieldRecoveryAction = 230;  // nvmlDeviceGpuRecoveryAction_t

// X(member, symbol, parameters); all return int. Without one of these there is no inventory.
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

// What older drivers, or newer ones, may not have: the fact is then not known.
#define REMPART_NVML_OPTIONAL(X)                                                            \
  X(cuda_version, "nvmlSystemGetCudaDriverVersion_v2", (int*))                              \
  X(capability, "nvmlDeviceGetCudaComputeCapability", (NvmlHandle, int*, int*))             \
  X(mig_mode, "nvmlDeviceGetMigMode", (NvmlHandle, unsigned*, unsigned*))                   \
  X(remapped_rows, "nvmlDeviceGetRemappedRows",                                             \
    (NvmlHandle, unsigned*, unsigned*, unsigned*, unsigned*))                               \
  X(pages_pending, "nvmlDeviceGetRetiredPagesPendingStatus", (NvmlHandle, int*))            \
  X(temperature, "nvmlDeviceGetTemperature", (NvmlHandle, int, unsigned*))                  \
  X(power, "nvmlDeviceGetPowerUsage", (NvmlHandle, unsigned*))                              \
  X(slowdowns, "nvmlDeviceGetCurrentClocksEventReasons", (NvmlHandle, unsigned long long*)) \
  X(slowdowns_before_535, "nvmlDeviceGetCurrentClocksThrottleReasons",                      \
    (NvmlHandle, unsigned long long*))                                                      \
  X(link_peer_kind, "nvmlDeviceGetNvLinkRemoteDeviceType", (NvmlHandle, unsigned, int*))    \
  X(common_ancestor, "nvmlDeviceGetTopologyCommonAncestor", (NvmlHandle, NvmlHandle, int*)) \
  X(field_values, "nvmlDeviceGetFieldValues", (NvmlHandle, int, NvmlFieldValue*))
