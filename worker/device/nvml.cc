// SPDX-License-Identifier: Apache-2.0
#include "worker/device/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/device/nvml_abi.h"

namespace rempart::worker {
namespace {

constexpr char kLibrary[] = "libnvidia-ml.so.1";
constexpr unsigned kTextBytes = 96;
constexpr int kUncorrected = 1;  // NVML_MEMORY_ERROR_TYPE_UNCORRECTED
constexpr int kVolatile = 0;     // NVML_VOLATILE_ECC

struct Functions {
#define REMPART_DECLARE(member, symbol, parameters) int(*member) parameters = nullptr;
  REMPART_NVML(REMPART_DECLARE)
#undef REMPART_DECLARE
};

absl::Status ToStatus(int code, const char* what) {
  if (code == kNvmlSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("NVML: ", what, " failed with code ", code));
}

class LoadedNvml : public Nvml {
 public:
  explicit LoadedNvml(const Functions& nvml) : nvml_(nvml) {}
  ~LoadedNvml() override {
    if (events_ != nullptr) nvml_.free_events(events_);
    nvml_.shutdown();
  }

  absl::StatusOr<std::string> DriverVersion() override {
    char text[kTextBytes] = {};
    RETURN_IF_ERROR(ToStatus(nvml_.driver_version(text, kTextBytes - 1), "driver version"));
    return std::string(text);
  }

  absl::StatusOr<std::vector<GpuFacts>> Inventory() override {
    ASSIGN_OR_RETURN(const std::vector<NvmlHandle> handles, Handles());
    std::vector<GpuFacts> facts;
    for (const NvmlHandle handle : handles) {
      ASSIGN_OR_RETURN(GpuFacts gpu, Describe(handle));
      facts.push_back(std::move(gpu));
    }
    return facts;
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
      RETURN_IF_ERROR(ToStatus(code, "waiting for events"));
      ASSIGN_OR_RETURN(std::string uuid, Uuid(event.device));
      errors.push_back({std::move(uuid), static_cast<int64_t>(event.data)});
      wait_ms = 0;
    }
  }

 private:
  absl::StatusOr<std::vector<NvmlHandle>> Handles() {
    unsigned count = 0;
    RETURN_IF_ERROR(ToStatus(nvml_.count(&count), "counting GPUs"));
    std::vector<NvmlHandle> handles(count);
    for (unsigned i = 0; i < count; ++i) {
      RETURN_IF_ERROR(ToStatus(nvml_.handle(i, &handles[i]), "opening a GPU"));
    }
    return handles;
  }

  absl::StatusOr<std::string> Uuid(NvmlHandle handle) {
    char text[kTextBytes] = {};
    RETURN_IF_ERROR(ToStatus(nvml_.uuid(handle, text, kTextBytes - 1), "UUID"));
    return std::string(text);
  }

  absl::StatusOr<GpuFacts> Describe(NvmlHandle handle) {
    GpuFacts gpu;
    ASSIGN_OR_RETURN(gpu.uuid, Uuid(handle));
    char name[kTextBytes] = {};
    RETURN_IF_ERROR(ToStatus(nvml_.name(handle, name, kTextBytes - 1), "name"));
    gpu.name = name;
    NvmlPciInfo pci = {};
    RETURN_IF_ERROR(ToStatus(nvml_.pci(handle, &pci), "PCI address"));
    gpu.pci_bus_id = pci.bus_id;
    NvmlMemory memory = {};
    RETURN_IF_ERROR(ToStatus(nvml_.memory(handle, &memory), "memory"));
    gpu.total_bytes = static_cast<int64_t>(memory.total);
    gpu.used_bytes = static_cast<int64_t>(memory.used);
    // Not every GPU has ECC or NVLink: an error here says so.
    unsigned long long errors = 0;
    if (nvml_.ecc_errors(handle, kUncorrected, kVolatile, &errors) == kNvmlSuccess) {
      gpu.ecc_uncorrected = static_cast<int64_t>(errors);
    }
    for (unsigned link = 0; link < kNvmlMaxLinks; ++link) {
      int active = 0;
      NvmlPciInfo peer = {};
      if (nvml_.link_state(handle, link, &active) == kNvmlSuccess && active == 1 &&
          nvml_.link_peer(handle, link, &peer) == kNvmlSuccess) {
        gpu.nvlink_peers.emplace_back(peer.bus_id);
      }
    }
    return gpu;
  }

  absl::Status Watch() {
    ASSIGN_OR_RETURN(const std::vector<NvmlHandle> handles, Handles());
    RETURN_IF_ERROR(ToStatus(nvml_.make_events(&events_), "making an event set"));
    for (const NvmlHandle handle : handles) {
      RETURN_IF_ERROR(ToStatus(nvml_.watch(handle, kNvmlEventXid, events_), "watching a GPU"));
    }
    return absl::OkStatus();
  }

  const Functions nvml_;
  NvmlEventSet events_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Load(const std::string& library) {
  void* handle = dlopen(library.empty() ? kLibrary : library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return absl::NotFoundError(absl::StrCat("no NVIDIA driver: ", dlerror()));
  }
  Functions nvml;
#define REMPART_FIND(member, symbol, parameters)                                     \
  nvml.member = reinterpret_cast<int(*) parameters>(dlsym(handle, symbol));          \
  if (nvml.member == nullptr) {                                                      \
    return absl::NotFoundError("the NVIDIA driver is too old: NVML has no " symbol); \
  }
  REMPART_NVML(REMPART_FIND)
#undef REMPART_FIND
  RETURN_IF_ERROR(ToStatus(nvml.init(), "init"));
  return std::make_unique<LoadedNvml>(nvml);
}

bool AllLinkedByNvLink(const std::vector<GpuFacts>& gpus) {
  for (size_t i = 0; i < gpus.size(); ++i) {
    const std::set<std::string> links(gpus[i].nvlink_peers.begin(), gpus[i].nvlink_peers.end());
    for (size_t j = i + 1; j < gpus.size(); ++j) {
      const std::vector<std::string>& peers = gpus[j].nvlink_peers;
      const bool direct = links.contains(gpus[j].pci_bus_id);
      // Both plugged into one switch.
      const bool switched = std::any_of(peers.begin(), peers.end(), [&](const std::string& peer) {
        return links.contains(peer) &&
               std::none_of(gpus.begin(), gpus.end(),
                            [&](const GpuFacts& g) { return g.pci_bus_id == peer; });
      });
      if (!direct && !switched) return false;
    }
  }
  return true;
}

}  // namespace rempart::worker
