// SPDX-License-Identifier: Apache-2.0
#include "worker/device/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/device/nvml_abi.h"

namespace rempart::worker {
namespace {

constexpr char kLibrary[] = "libnvidia-ml.so.1";
constexpr unsigned kTextBytes = 96;
constexpr int kDieTemperature = 0;  // NVML_TEMPERATURE_GPU

struct Functions {
#define REMPART_DECLARE(member, symbol, parameters) int(*member) parameters = nullptr;
  REMPART_NVML(REMPART_DECLARE)
  REMPART_NVML_OPTIONAL(REMPART_DECLARE)
#undef REMPART_DECLARE
};

absl::Status ToStatus(int code, const char* what) {
  if (code == kNvmlSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("NVML: ", what, " failed with code ", code));
}

// nvmlClocksEventReason*: what holds the clocks back. That it is idle, or set so, is no slowdown.
struct Slowdown {
  unsigned long long bit;
  const char* name;
};
constexpr Slowdown kSlowdowns[] = {{0x04, "power_cap"},        {0x08, "hardware"},
                                   {0x20, "thermal_software"}, {0x40, "thermal_hardware"},
                                   {0x80, "power_brake"},      {0x10, "sync_boost"}};

// nvmlGpuTopologyLevel_t in the words of `nvidia-smi topo`.
std::string PathName(int level) {
  switch (level) {
    case 0:  // on one board
    case 10:
      return "PIX";
    case 20:
      return "PXB";
    case 30:
      return "PHB";
    case 40:
      return "NODE";
    case 50:
      return "SYS";
    default:
      return "";
  }
}

GpuCondition ConditionOf(unsigned long long recovery_action) {
  switch (recovery_action) {
    case 1:
      return GpuCondition::kNeedsReset;
    case 2:
      return GpuCondition::kNeedsReboot;
    case 3:  // of peer-to-peer traffic first
    case 4:
      return GpuCondition::kWantsReset;
    default:
      return GpuCondition::kUsable;
  }
}

class Library {
 public:
  explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {}
  Library(Library&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Library& operator=(Library&&) = delete;
  ~Library() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  bool is_open() const { return handle_ != nullptr; }
  void* Find(const char* symbol) const { return dlsym(handle_, symbol); }

 private:
  void* handle_;
};

class LoadedNvml : public Nvml {
 public:
  LoadedNvml(Library library, const Functions& nvml) : library_(std::move(library)), nvml_(nvml) {}
  ~LoadedNvml() override {
    if (events_ != nullptr) nvml_.free_events(events_);
    nvml_.shutdown();
  }

  absl::StatusOr<std::string> DriverVersion() override {
    char text[kTextBytes] = {};
    RETURN_IF_ERROR(ToStatus(nvml_.driver_version(text, kTextBytes - 1), "driver version"));
    return std::string(text);
  }

  std::string CudaVersion() override {
    int version = 0;
    if (nvml_.cuda_version == nullptr || nvml_.cuda_version(&version) != kNvmlSuccess) return "";
    return absl::StrCat(version / 1000, ".", version % 1000 / 10);
  }

  absl::StatusOr<std::vector<GpuFacts>> Inventory() override {
    RETURN_IF_ERROR(Open());
    std::vector<GpuFacts> facts;
    for (const Known& known : known_) facts.push_back(Describe(known));
    return facts;
  }

  absl::StatusOr<GpuFacts> Describe(const std::string& uuid) override {
    RETURN_IF_ERROR(Open());
    const Known* known = Find(uuid);
    if (known == nullptr) return absl::NotFoundError(absl::StrCat("NVML: no GPU ", uuid));
    return Describe(*known);
  }

  std::string PathBetween(const std::string& uuid, const std::string& other_uuid) override {
    if (nvml_.common_ancestor == nullptr || !Open().ok()) return "";
    const Known* one = Find(uuid);
    const Known* other = Find(other_uuid);
    int level = -1;
    if (one == nullptr || other == nullptr ||
        nvml_.common_ancestor(one->handle, other->handle, &level) != kNvmlSuccess) {
      return "";
    }
    return PathName(level);
  }

  absl::StatusOr<std::vector<GpuError>> Errors(absl::Duration wait) override {
    if (events_ == nullptr) RETURN_IF_ERROR(Watch());
    std::vector<GpuError> errors;
    auto wait_ms =
        static_cast<unsigned>(std::clamp<int64_t>(absl::ToInt64Milliseconds(wait), 0, 60'000));
    while (true) {
      NvmlEvent event = {};
      const int code = nvml_.wait(events_, &event, wait_ms);
      if (code == kNvmlTimeout) return errors;
      if (code == kNvmlGpuIsLost) {
        if (!errors.empty()) return errors;
        return absl::UnavailableError("NVML: a GPU does not answer any more");
      }
      RETURN_IF_ERROR(ToStatus(code, "waiting for events"));
      wait_ms = 0;
      if (event.type != kNvmlEventXid) continue;
      ASSIGN_OR_RETURN(std::string uuid, UuidOf(event.device));
      errors.push_back({std::move(uuid), static_cast<int64_t>(event.data)});
    }
  }

 private:
  // What stays true of a GPU even when it no longer answers.
  struct Known {
    NvmlHandle handle = nullptr;
    GpuFacts identity;
  };

  // Once: handles stay valid. A GPU that cannot be opened is left out, unless none can.
  absl::Status Open() {
    if (!known_.empty()) return absl::OkStatus();
    unsigned count = 0;
    RETURN_IF_ERROR(ToStatus(nvml_.count(&count), "counting GPUs"));
    absl::Status failure = absl::OkStatus();
    for (unsigned i = 0; i < count; ++i) {
      Known known;
      failure.Update(ToStatus(nvml_.handle(i, &known.handle), "opening a GPU"));
      if (known.handle == nullptr) continue;
      absl::StatusOr<GpuFacts> identity = Identify(known.handle);
      failure.Update(identity.status());
      if (!identity.ok()) continue;
      known.identity = *std::move(identity);
      known_.push_back(std::move(known));
    }
    return known_.empty() ? failure : absl::OkStatus();
  }

  const Known* Find(const std::string& uuid) const {
    for (const Known& known : known_) {
      if (known.identity.uuid == uuid) return &known;
    }
    return nullptr;
  }

  absl::StatusOr<std::string> UuidOf(NvmlHandle handle) {
    for (const Known& known : known_) {
      if (known.handle == handle) return known.identity.uuid;
    }
    char text[kTextBytes] = {};
    RETURN_IF_ERROR(ToStatus(nvml_.uuid(handle, text, kTextBytes - 1), "UUID"));
    return std::string(text);
  }

  absl::StatusOr<GpuFacts> Identify(NvmlHandle handle) {
    GpuFacts gpu;
    ASSIGN_OR_RETURN(gpu.uuid, UuidOf(handle));
    char name[kTextBytes] = {};
    RETURN_IF_ERROR(ToStatus(nvml_.name(handle, name, kTextBytes - 1), "name"));
    gpu.name = name;
    NvmlPciInfo pci = {};
    RETURN_IF_ERROR(ToStatus(nvml_.pci(handle, &pci), "PCI address"));
    gpu.pci_bus_id = CanonicalPciBusId(pci.bus_id);
    int major = 0, minor = 0;
    if (nvml_.capability != nullptr && nvml_.capability(handle, &major, &minor) == kNvmlSuccess) {
      gpu.compute_capability = absl::StrCat(major, ".", minor);
    }
    return gpu;
  }

  GpuFacts Describe(const Known& known) {
    GpuFacts gpu = known.identity;
    NvmlMemory memory = {};
    const int code = nvml_.memory(known.handle, &memory);
    if (code == kNvmlSuccess) {
      gpu.total_bytes = static_cast<int64_t>(memory.total);
      gpu.used_bytes = static_cast<int64_t>(memory.used);
    }
    if (code == kNvmlResetRequired) gpu.condition = GpuCondition::kNeedsReset;
    if (code == kNvmlGpuIsLost) {
      gpu.condition = GpuCondition::kLost;
      return gpu;
    }
    DescribeErrors(known.handle, gpu);
    DescribeState(known.handle, gpu);
    DescribeLinks(known.handle, gpu);
    return gpu;
  }

  // Not every GPU has ECC, or rows to spare: an error of a call says so.
  void DescribeErrors(NvmlHandle handle, GpuFacts& gpu) {
    unsigned long long errors = 0;
    if (nvml_.ecc_errors(handle, kNvmlUncorrected, kNvmlVolatile, &errors) == kNvmlSuccess) {
      gpu.ecc_uncorrected = static_cast<int64_t>(errors);
    }
    if (nvml_.ecc_errors(handle, kNvmlUncorrected, kNvmlAggregate, &errors) == kNvmlSuccess) {
      gpu.ecc_uncorrected_lifetime = static_cast<int64_t>(errors);
    }
    unsigned corrected = 0, uncorrected = 0, pending = 0, failed = 0;
    if (nvml_.remapped_rows != nullptr &&
        nvml_.remapped_rows(handle, &corrected, &uncorrected, &pending, &failed) == kNvmlSuccess) {
      gpu.remap_pending = pending != 0;
      gpu.remap_failed = failed != 0;
    }
    int pages = 0;  // of GPUs before Ampere
    if (nvml_.pages_pending != nullptr && nvml_.pages_pending(handle, &pages) == kNvmlSuccess &&
        pages == 1) {
      gpu.remap_pending = true;
    }
    NvmlFieldValue action = {};
    action.field = kNvmlFieldRecoveryAction;
    if (nvml_.field_values != nullptr && nvml_.field_values(handle, 1, &action) == kNvmlSuccess &&
        action.code == kNvmlSuccess) {
      gpu.condition = std::max(gpu.condition, ConditionOf(action.value));
    }
  }

  void DescribeState(NvmlHandle handle, GpuFacts& gpu) {
    unsigned value = 0, pending = 0;
    if (nvml_.mig_mode != nullptr && nvml_.mig_mode(handle, &value, &pending) == kNvmlSuccess) {
      gpu.is_mig = value == 1;
    }
    if (nvml_.temperature != nullptr &&
        nvml_.temperature(handle, kDieTemperature, &value) == kNvmlSuccess) {
      gpu.temperature_celsius = static_cast<int32_t>(value);
    }
    if (nvml_.power != nullptr && nvml_.power(handle, &value) == kNvmlSuccess) {
      gpu.power_milliwatts = value;
    }
    const auto slowdowns =
        nvml_.slowdowns != nullptr ? nvml_.slowdowns : nvml_.slowdowns_before_535;
    unsigned long long reasons = 0;
    if (slowdowns == nullptr || slowdowns(handle, &reasons) != kNvmlSuccess) return;
    for (const Slowdown& slowdown : kSlowdowns) {
      if ((reasons & slowdown.bit) != 0) gpu.slowdowns.emplace_back(slowdown.name);
    }
  }

  void DescribeLinks(NvmlHandle handle, GpuFacts& gpu) {
    for (unsigned link = 0; link < kNvmlMaxLinks; ++link) {
      int active = 0;
      NvmlPciInfo pci = {};
      if (nvml_.link_state(handle, link, &active) != kNvmlSuccess || active != 1 ||
          nvml_.link_peer(handle, link, &pci) != kNvmlSuccess) {
        continue;
      }
      NvLinkPeer peer{CanonicalPciBusId(pci.bus_id)};
      int kind = -1;
      if (nvml_.link_peer_kind != nullptr) (void)nvml_.link_peer_kind(handle, link, &kind);
      if (kind == kNvmlLinkToGpu) peer.kind = NvLinkPeer::Kind::kGpu;
      if (kind == kNvmlLinkToSwitch) peer.kind = NvLinkPeer::Kind::kSwitch;
      gpu.nvlink_peers.push_back(std::move(peer));
    }
  }

  absl::Status Watch() {
    RETURN_IF_ERROR(Open());
    NvmlEventSet events = nullptr;
    RETURN_IF_ERROR(ToStatus(nvml_.make_events(&events), "making an event set"));
    int watched = 0;
    int failure = kNvmlSuccess;
    for (const Known& known : known_) {
      const int code = nvml_.watch(known.handle, kNvmlEventXid, events);
      code == kNvmlSuccess ? void(++watched) : void(failure = code);
    }
    if (watched == 0) {
      nvml_.free_events(events);
      return absl::FailedPreconditionError(
          absl::StrCat("NVML: no GPU here reports XID errors (code ", failure, ")"));
    }
    events_ = events;
    return absl::OkStatus();
  }

  const Library library_;
  const Functions nvml_;
  std::vector<Known> known_;
  NvmlEventSet events_ = nullptr;
};

bool IsSwitch(const NvLinkPeer& peer, const std::vector<GpuFacts>& gpus) {
  if (peer.kind != NvLinkPeer::Kind::kUnknown) return peer.kind == NvLinkPeer::Kind::kSwitch;
  return std::none_of(gpus.begin(), gpus.end(),
                      [&](const GpuFacts& gpu) { return gpu.pci_bus_id == peer.pci_bus_id; });
}

// Links of `from` to switches that `to` is plugged into as well.
int LinksToSharedSwitches(const GpuFacts& from, const GpuFacts& to,
                          const std::vector<GpuFacts>& gpus) {
  std::set<std::string> shared;
  for (const NvLinkPeer& peer : to.nvlink_peers) {
    if (IsSwitch(peer, gpus)) shared.insert(peer.pci_bus_id);
  }
  return static_cast<int>(std::count_if(
      from.nvlink_peers.begin(), from.nvlink_peers.end(), [&](const NvLinkPeer& peer) {
        return IsSwitch(peer, gpus) && shared.contains(peer.pci_bus_id);
      }));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Load(const std::string& library) {
  Library loaded(library.empty() ? kLibrary : library.c_str());
  if (!loaded.is_open()) {
    return absl::NotFoundError(absl::StrCat("no NVIDIA driver: ", dlerror()));
  }
  Functions nvml;
#define REMPART_FIND(member, symbol, parameters) \
  nvml.member = reinterpret_cast<int(*) parameters>(loaded.Find(symbol));
#define REMPART_REQUIRE(member, symbol, parameters)                                  \
  REMPART_FIND(member, symbol, parameters)                                           \
  if (nvml.member == nullptr) {                                                      \
    return absl::NotFoundError("the NVIDIA driver is too old: NVML has no " symbol); \
  }
  REMPART_NVML(REMPART_REQUIRE)
  REMPART_NVML_OPTIONAL(REMPART_FIND)
#undef REMPART_FIND
#undef REMPART_REQUIRE
  RETURN_IF_ERROR(ToStatus(nvml.init(), "init"));
  return std::make_unique<LoadedNvml>(std::move(loaded), nvml);
}

std::string CanonicalPciBusId(absl::string_view text) {
  unsigned domain = 0, bus = 0, device = 0, function = 0;
  int end = 0;
  const std::string copy(text);
  const int fields =
      std::sscanf(copy.c_str(), "%x:%x:%x.%x%n", &domain, &bus, &device, &function, &end);
  if (fields != 4 || static_cast<size_t>(end) != copy.size()) return "";
  return absl::StrFormat("%08X:%02X:%02X.%X", domain, bus, device, function);
}

int NvLinksBetween(const GpuFacts& a, const GpuFacts& b, const std::vector<GpuFacts>& gpus) {
  const auto direct =
      std::count_if(a.nvlink_peers.begin(), a.nvlink_peers.end(),
                    [&](const NvLinkPeer& peer) { return peer.pci_bus_id == b.pci_bus_id; });
  if (direct > 0) return static_cast<int>(direct);
  return std::min(LinksToSharedSwitches(a, b, gpus), LinksToSharedSwitches(b, a, gpus));
}

bool AllLinkedByNvLink(const std::vector<GpuFacts>& gpus) {
  for (size_t i = 0; i < gpus.size(); ++i) {
    for (size_t j = i + 1; j < gpus.size(); ++j) {
      if (NvLinksBetween(gpus[i], gpus[j], gpus) == 0) return false;
    }
  }
  return true;
}

}  // namespace rempart::worker
