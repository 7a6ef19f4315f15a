// SPDX-License-Identifier: Apache-2.0
#include "worker/device/gpu_health.h"

#include <tuple>

#include "absl/strings/str_cat.h"
#include "worker/device/xid.h"

namespace rempart::worker {
namespace {

constexpr absl::Duration kSameFault = absl::Minutes(1);

// What is told of a GPU when it changes.
auto Told(const GpuFacts& gpu) {
  std::vector<std::string> peers;
  for (const NvLinkPeer& peer : gpu.nvlink_peers) peers.push_back(peer.pci_bus_id);
  return std::make_tuple(gpu.uuid, gpu.name, gpu.pci_bus_id, gpu.compute_capability, gpu.is_mig,
                         gpu.total_bytes, gpu.ecc_uncorrected, gpu.ecc_uncorrected_lifetime,
                         gpu.remap_pending, gpu.remap_failed, gpu.condition, peers);
}

bool IsSame(const std::vector<GpuFacts>& before, const std::vector<GpuFacts>& now) {
  if (before.size() != now.size()) return false;
  for (size_t i = 0; i < now.size(); ++i) {
    if (Told(before[i]) != Told(now[i])) return false;
  }
  return true;
}

struct Verdict {
  const char* meaning;
  const char* advice;
};

// Of a GPU that this process cannot go on with; null: it can.
const Verdict* VerdictOf(GpuCondition condition) {
  static constexpr Verdict kReset = {"the driver says that it must be reset",
                                     "reset the GPU (nvidia-smi --gpu-reset) or reboot its node"};
  static constexpr Verdict kReboot = {"the driver says that its node must be rebooted",
                                      "reboot the node"};
  static constexpr Verdict kLost = {
      "the driver gets no answer from it any more",
      "reboot the node; if it comes back, check the GPU's seat, power and slot"};
  switch (condition) {
    case GpuCondition::kUsable:
    case GpuCondition::kWantsReset:
      return nullptr;
    case GpuCondition::kNeedsReset:
      return &kReset;
    case GpuCondition::kNeedsReboot:
      return &kReboot;
    case GpuCondition::kLost:
      return &kLost;
  }
  return nullptr;
}

GpuFault FaultOf(int32_t index, const GpuFacts& gpu, absl::Time now) {
  GpuFault fault;
  fault.gpu = index;
  fault.uuid = gpu.uuid;
  fault.name = gpu.name;
  fault.at = now;
  return fault;
}

bool MayReplace(const std::optional<GpuFault>& known, const GpuFault& fresh) {
  if (!known.has_value()) return true;
  if (known->is_broken) return false;
  if (fresh.is_broken) return true;
  const bool same = known->uuid == fresh.uuid && known->xid == fresh.xid;
  return !same || fresh.at - known->at >= kSameFault;
}

void TakeFault(GpuFault fault, GpuSnapshot& snapshot) {
  if (!MayReplace(snapshot.fault, fault)) return;
  snapshot.fault = std::move(fault);
  ++snapshot.version;
}

}  // namespace

std::string GpuFault::Text() const {
  return absl::StrCat("GPU ", gpu, " (", name, ", ", uuid,
                      "): ", xid == 0 ? "" : absl::StrCat("XID ", xid, ": "), meaning);
}

absl::StatusOr<std::vector<GpuFacts>> AtAddresses(const std::vector<GpuFacts>& all,
                                                  const std::vector<std::string>& pci_bus_ids) {
  std::vector<GpuFacts> gpus;
  for (const std::string& address : pci_bus_ids) {
    const size_t before = gpus.size();
    for (const GpuFacts& gpu : all) {
      if (gpu.pci_bus_id == CanonicalPciBusId(address)) gpus.push_back(gpu);
    }
    if (gpus.size() == before + 1) continue;
    return absl::NotFoundError(absl::StrCat("NVML shows ", gpus.size() - before,
                                            " GPUs at the address ", address,
                                            ", where CUDA shows one"));
  }
  return gpus;
}

std::vector<GpuPair> PairsOf(const std::vector<GpuFacts>& gpus) {
  std::vector<GpuPair> pairs;
  for (size_t i = 0; i < gpus.size(); ++i) {
    for (size_t j = i + 1; j < gpus.size(); ++j) {
      GpuPair& pair = pairs.emplace_back();
      pair.first = static_cast<int32_t>(i);
      pair.second = static_cast<int32_t>(j);
      pair.nvlinks = NvLinksBetween(gpus[i], gpus[j], gpus);
    }
  }
  return pairs;
}

void Record(const GpuError& error, absl::Time now, GpuSnapshot& snapshot) {
  for (size_t i = 0; i < snapshot.gpus.size(); ++i) {
    const GpuFacts& gpu = snapshot.gpus[i];
    if (gpu.uuid != error.uuid) continue;
    const auto index = static_cast<int32_t>(i);
    ++snapshot.xids[{index, error.xid}];
    const XidMeaning known = MeaningOf(error.xid);
    GpuFault fault = FaultOf(index, gpu, now);
    fault.xid = error.xid;
    fault.meaning = known.meaning;
    fault.advice = known.advice;
    fault.is_broken = known.is_broken;
    return TakeFault(std::move(fault), snapshot);
  }
}

void Renew(std::vector<GpuFacts> gpus, absl::Time now, GpuSnapshot& snapshot) {
  if (!IsSame(snapshot.gpus, gpus)) ++snapshot.version;
  snapshot.gpus = std::move(gpus);
  for (GpuPair& pair : snapshot.pairs) {
    pair.nvlinks = NvLinksBetween(snapshot.gpus[static_cast<size_t>(pair.first)],
                                  snapshot.gpus[static_cast<size_t>(pair.second)], snapshot.gpus);
  }
  for (size_t i = 0; i < snapshot.gpus.size(); ++i) {
    const GpuFacts& gpu = snapshot.gpus[i];
    const Verdict* verdict = VerdictOf(gpu.condition);
    if (verdict == nullptr) continue;
    GpuFault fault = FaultOf(static_cast<int32_t>(i), gpu, now);
    fault.meaning = verdict->meaning;
    fault.advice = verdict->advice;
    fault.is_broken = true;
    TakeFault(std::move(fault), snapshot);
  }
}

}  // namespace rempart::worker
