// SPDX-License-Identifier: Apache-2.0
// What the NVIDIA driver tells of a node's GPUs: memory, ECC, NVLink and XID errors. The library is
// loaded at run time (it comes with the driver), so this compiles and runs everywhere; where it is
// missing, Load says so. One thread uses an Nvml.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rempart::worker {

struct GpuFacts {
  std::string uuid;        // "GPU-5fb9a..."
  std::string name;        // "NVIDIA H200"
  std::string pci_bus_id;  // "00000000:1B:00.0"
  int64_t total_bytes = 0;
  int64_t used_bytes = 0;
  // Uncorrected memory errors since the driver was loaded; -1 where the GPU has no ECC.
  int64_t ecc_uncorrected = -1;
  // PCI bus ids at the other ends of active NVLinks, one for each link, in order of the links:
  // GPUs or switches.
  std::vector<std::string> nvlink_peers;
};

// A critical error that the driver reported (an XID); NVIDIA's documentation lists the codes.
struct GpuError {
  std::string uuid;
  int64_t xid = 0;
};

class Nvml {
 public:
  // NotFound when there is no driver. `library` may be empty: the loader's path.
  static absl::StatusOr<std::unique_ptr<Nvml>> Load(const std::string& library);
  virtual ~Nvml() = default;

  virtual absl::StatusOr<std::string> DriverVersion() = 0;
  virtual absl::StatusOr<std::vector<GpuFacts>> Inventory() = 0;
  // XIDs since the last call, after waiting for the first one for at most `wait`.
  virtual absl::StatusOr<std::vector<GpuError>> Errors(absl::Duration wait) = 0;
};

// Whether every pair of these GPUs has NVLinks in common: direct ones, or through switches.
bool AllLinkedByNvLink(const std::vector<GpuFacts>& gpus);

}  // namespace rempart::worker
