// SPDX-License-Identifier: Apache-2.0
// What is known of the GPUs that this process computes on, and how words of the driver change it.
// Plain data and pure functions; worker/device/gpu_watch.h feeds them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/device/nvml.h"

namespace rempart::worker {

// An XID, or the driver's own word that a GPU cannot go on.
struct GpuFault {
  int32_t gpu = 0;  // as the ranks of this pod count
  std::string uuid = {};
  std::string name = {};
  int64_t xid = 0;  // 0: none was reported
  std::string meaning = {};
  std::string advice = {};
  absl::Time at = {};
  bool is_broken = false;  // this process cannot go on with it

  // "GPU 1 (NVIDIA H200, GPU-5fb9a...): XID 79: the GPU has fallen off the bus".
  std::string Text() const;
};

// How two GPUs of this pod reach each other.
struct GpuPair {
  int32_t first = 0;
  int32_t second = 0;
  int32_t nvlinks = 0;    // direct, or through switches
  std::string path = {};  // over PCI Express: PIX, PXB, PHB, NODE, SYS
};

struct GpuSnapshot {
  // Grows when anything changes but what always does: memory in use, temperature, power, clocks.
  int64_t version = 0;
  std::string problem = {};  // why nothing, or not all, is known
  std::string driver_version = {};
  std::string cuda_version = {};
  std::vector<GpuFacts> gpus = {};  // of the ranks of this pod, in their order
  std::vector<GpuPair> pairs = {};
  std::map<std::pair<int32_t, int64_t>, int64_t> xids = {};  // how many, by GPU and XID
  // The last one; one that breaks a GPU is kept, because others follow from it.
  std::optional<GpuFault> fault = {};
};

// The GPUs at these PCI addresses, in this order. NotFound names the first that is not there.
absl::StatusOr<std::vector<GpuFacts>> AtAddresses(const std::vector<GpuFacts>& all,
                                                  const std::vector<std::string>& pci_bus_ids);

// Every two of them, without their paths.
std::vector<GpuPair> PairsOf(const std::vector<GpuFacts>& gpus);

// An XID of a GPU that is not ours changes nothing. The same one again within a minute is counted
// and no new fault, unless it breaks the GPU.
void Record(const GpuError& error, absl::Time now, GpuSnapshot& snapshot);

// Facts of our GPUs, as many as before, read anew. A GPU that the driver gives up is a fault
// without an XID.
void Renew(std::vector<GpuFacts> gpus, absl::Time now, GpuSnapshot& snapshot);

}  // namespace rempart::worker
