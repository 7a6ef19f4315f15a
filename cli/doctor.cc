// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/run_folder.h"
#include "kernels/chosen_kernels.h"
#include "kernels/ops.h"
#include "worker/device/cpu_count.h"
#include "worker/device/memory_limit.h"
#include "worker/device/nvml.h"

namespace rempart::cli {
namespace {

constexpr int kPort = 8000;
constexpr int64_t kLittleMemoryMib = 2048;

enum class Verdict { kGood, kNote, kBad };

void Print(Verdict verdict, const std::string& what) {
  const char* mark = verdict == Verdict::kGood   ? "ok  "
                     : verdict == Verdict::kNote ? "note"
                                                 : "BAD ";
  std::printf("%s  %s\n", mark, what.c_str());
}

void PrintKernels(const kernels::Ops& ops) {
  std::printf("      %s:\n", ops.name);
  for (const kernels::ChosenKernel& chosen : kernels::ChosenKernels(ops)) {
    std::printf("        %-13s %-40s %s\n", chosen.op.c_str(), chosen.when.c_str(),
                chosen.kernel.c_str());
  }
}

// "2 CPUs", and who says so where that is fewer than there are.
std::string CpusText() {
  const int usable = worker::UsableCpuCount();
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const std::string cpus = absl::StrCat(usable, usable == 1 ? " CPU" : " CPUs");
  if (usable >= online) return cpus;
  const std::optional<double> quota = worker::CgroupCpuQuota("");
  return absl::StrCat(cpus, " of ", online, " (",
                      quota.has_value() ? absl::StrCat("cgroup quota ", *quota) : "affinity mask",
                      ")");
}

bool CheckProcessor(const std::string& kernel_tier) {
  const kernels::Ops& best = kernels::BestOps();
  std::string others;
  for (const kernels::Ops* ops : kernels::ChoosableOps()) {
    if (ops == &best) continue;
    absl::StrAppend(&others, others.empty() ? "" : ", ", ops->name);
  }
  const bool is_fast = std::string(best.name) != "baseline";
  Print(is_fast ? Verdict::kGood : Verdict::kNote,
        absl::StrCat("processor: ", CpusText(), "; kernels ", best.name, " (", best.description,
                     "); also ", others,
                     is_fast ? "" : ": models run, slowly; use a machine with AVX2 for real work"));
  PrintKernels(kernel_tier.empty() ? best : *kernels::FindOps(kernel_tier));
  return true;
}

bool CheckMemory() {
  const worker::MemoryUse use = worker::ReadMemoryUse("");
  const int64_t mib = use.left_bytes() >> 20;
  const bool enough = mib >= kLittleMemoryMib;
  Print(enough ? Verdict::kGood : Verdict::kNote,
        absl::StrCat("memory: ", mib, " MiB available of ", use.limit_bytes >> 20, " MiB (",
                     use.limit_of, ")",
                     enough ? ""
                            : ": only the smallest models fit; stop other programs, or raise "
                              "that limit"));
  return true;
}

// What is wrong with a GPU; empty: nothing that the driver knows of.
std::string TroubleOf(const worker::GpuFacts& gpu) {
  switch (gpu.condition) {
    case worker::GpuCondition::kUsable:
      return "";
    case worker::GpuCondition::kWantsReset:
      return ": reset it when nothing runs on it (nvidia-smi --gpu-reset)";
    case worker::GpuCondition::kNeedsReset:
      return ": it cannot be used before a reset (nvidia-smi --gpu-reset)";
    case worker::GpuCondition::kNeedsReboot:
      return ": it cannot be used before this machine is rebooted";
    case worker::GpuCondition::kLost:
      return ": it does not answer; reboot this machine, and check its seat, power and slot";
  }
  return "";
}

bool CheckPort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(kPort);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  Print(free ? Verdict::kGood : Verdict::kNote,
        free ? absl::StrCat("port: 127.0.0.1:", kPort, " is free")
             : absl::StrCat("port: 127.0.0.1:", kPort,
                            " is in use: give `rempart serve` another "
                            "one by --port"));
  return true;
}

void CheckContainers() {
  const bool root = geteuid() == 0;
  const bool cgroups = access("/sys/fs/cgroup/cgroup.controllers", R_OK) == 0;
  if (root && cgroups) return Print(Verdict::kGood, "containers: root, and cgroups v2 are mounted");
  Print(Verdict::kNote,
        absl::StrCat("containers: ", root ? "" : "not root; ", cgroups ? "" : "no cgroups v2; ",
                     "./quickstart cannot start a Kubernetes here; use ./quickstart --local or "
                     "`rempart serve`, or give a KUBECONFIG"));
}

}  // namespace

bool CheckFolder() {
  const std::string folder = RunFolder::Base();
  const bool is_writable = access(folder.c_str(), W_OK | X_OK) == 0;
  Print(is_writable ? Verdict::kGood : Verdict::kBad,
        absl::StrCat("folder: ", folder,
                     is_writable ? " is writable"
                                 : " is not writable: sockets and logs have no place; mount it, or "
                                   "set XDG_RUNTIME_DIR to a folder that is"));
  return is_writable;
}

void CheckGpus(const std::string& nvml_library) {
  const auto note = [](const absl::Status& why) {
    Print(Verdict::kNote, absl::StrCat("GPUs: none (", std::string(why.message()),
                                       "): models run with device: cpu"));
  };
  const absl::StatusOr<std::unique_ptr<worker::Nvml>> nvml = worker::Nvml::Load(nvml_library);
  if (!nvml.ok()) return note(nvml.status());
  const absl::StatusOr<std::vector<worker::GpuFacts>> gpus = (*nvml)->Inventory();
  if (!gpus.ok()) return note(gpus.status());
  if (gpus->empty()) return note(absl::NotFoundError("the NVIDIA driver shows none"));
  const absl::StatusOr<std::string> driver = (*nvml)->DriverVersion();
  Print(Verdict::kGood,
        absl::StrCat("GPUs: ", gpus->size(), ", driver ", driver.ok() ? *driver : "unknown",
                     ", CUDA ", (*nvml)->CudaVersion(),
                     "; device: gpu needs a worker of the cmake preset cuda"));
  for (const worker::GpuFacts& gpu : *gpus) {
    const std::string trouble = TroubleOf(gpu);
    const std::string mib =
        gpu.total_bytes < 0 ? "" : absl::StrCat(", ", gpu.total_bytes >> 20, " MiB");
    Print(trouble.empty() ? Verdict::kGood : Verdict::kNote,
          absl::StrCat("GPU ", gpu.pci_bus_id, ": ", gpu.name, mib, gpu.is_mig ? ", MIG" : "",
                       ", compute capability ", gpu.compute_capability, trouble));
  }
}

int RunDoctor(const std::string& kernel_tier) {
  bool usable = CheckProcessor(kernel_tier);
  usable = CheckMemory() && usable;
  CheckGpus("");
  usable = CheckPort() && usable;
  usable = CheckFolder() && usable;
  CheckContainers();
  return usable ? 0 : 1;
}

}  // namespace rempart::cli
