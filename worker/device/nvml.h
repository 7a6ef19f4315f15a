// SPDX-License-Identifier: Apache-2.0
// What the NVIDIA driver tells of a node's GPUs: identity, memory, ECC, NVLink, temperature and XID
// errors. The library is loaded at run time (it comes with the driver), so this compiles and runs
// everywhere; where it is missing, Load says so. One thread uses an Nvml.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rempart::worker {

// The other end of one active NVLink.
struct NvLinkPeer {
  enum class Kind { kGpu, kSwitch, kUnknown };
  std::string pci_bus_id;
  Kind kind = Kind::kUnknown;  // older drivers do not tell
};

// What the driver itself says must be done about a GPU.
enum class GpuCondition {
  kUsable,
  kWantsReset,  // when nothing runs on it; until then it can be used
  kNeedsReset,
  kNeedsReboot,  // of its node
  kLost,         // it does not answer
};

// What is not known is -1 or empty.
struct GpuFacts {
  std::string uuid;                // "GPU-5fb9a..."
  std::string name;                // "NVIDIA H200"
  std::string pci_bus_id;          // "00000000:1B:00.0"
  std::string compute_capability;  // "9.0"
  bool is_mig = false;             // cut into MIG instances
  int64_t total_bytes = -1;
  int64_t used_bytes = -1;
  // Uncorrected memory errors since the driver was loaded, and of the GPU's life; -1 where the GPU
  // has no ECC.
  int64_t ecc_uncorrected = -1;
  int64_t ecc_uncorrected_lifetime = -1;
  // Memory that broke waits for a reset to be replaced; and that it could not be, once.
  bool remap_pending = false;
  bool remap_failed = false;
  int32_t temperature_celsius = -1;
  int64_t power_milliwatts = -1;
  std::vector<std::string> slowdowns = {};  // why its clocks are held back: "power_cap"
  // One for each active link, in their order.
  std::vector<NvLinkPeer> nvlink_peers = {};
  GpuCondition condition = GpuCondition::kUsable;
};

// A critical error that the driver reported (an XID); worker/device/xid.h knows what they mean.
struct GpuError {
  std::string uuid;
  int64_t xid = 0;
};

class Nvml {
 public:
  // NotFound when there is no driver, or one without a function that is needed. `library` may be
  // empty: the loader's path.
  static absl::StatusOr<std::unique_ptr<Nvml>> Load(const std::string& library);
  virtual ~Nvml() = default;

  virtual absl::StatusOr<std::string> DriverVersion() = 0;
  // The newest that the driver runs, "13.0"; empty: not known.
  virtual std::string CudaVersion() = 0;
  // Of all GPUs that this process may see, in the driver's order, which need not be CUDA's.
  virtual absl::StatusOr<std::vector<GpuFacts>> Inventory() = 0;
  // Of one of them, anew. A GPU that no longer answers is told as far as it is known, and kLost.
  virtual absl::StatusOr<GpuFacts> Describe(const std::string& uuid) = 0;
  // How two of them reach each other over PCI Express, in the words of `nvidia-smi topo`: PIX, PXB,
  // PHB, NODE or SYS, from near to far; empty: not known.
  virtual std::string PathBetween(const std::string& uuid, const std::string& other_uuid) = 0;
  // XIDs since the last call, after waiting for the first one for at most `wait`. Unavailable when
  // a GPU no longer answers, FailedPrecondition when none of them reports XIDs.
  virtual absl::StatusOr<std::vector<GpuError>> Errors(absl::Duration wait) = 0;
};

// "0000:1b:00.0" as "00000000:1B:00.0": CUDA and the driver write it differently. Empty: no
// address.
std::string CanonicalPciBusId(absl::string_view text);

// NVLinks between two of these GPUs: direct ones, or through switches; 0: none.
int NvLinksBetween(const GpuFacts& a, const GpuFacts& b, const std::vector<GpuFacts>& gpus);

// Whether every pair of these GPUs has NVLinks in common: direct ones, or through switches.
bool AllLinkedByNvLink(const std::vector<GpuFacts>& gpus);

}  // namespace rempart::worker
