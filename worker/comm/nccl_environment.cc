// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/nccl_environment.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/nccl_variables.h"

namespace rempart::worker {
namespace {

constexpr absl::string_view kPrefix = "NCCL_";
// NCCL registers up to some 10 MiB for each channel and peer.
constexpr uint64_t kLeastLockedBytes = uint64_t{1} << 30;

// Code that NCCL would load: https://docs.nvidia.com/deeplearning/nccl, "Environment variables",
// and src/plugin/ of its source.
constexpr std::array<const char*, 6> kPlugins = {
    "NCCL_ENV_PLUGIN",      "NCCL_GIN_PLUGIN", "NCCL_NET_PLUGIN",
    "NCCL_PROFILER_PLUGIN", "NCCL_RMA_PLUGIN", "NCCL_TUNER_PLUGIN",
};

absl::string_view NameOf(absl::string_view entry) { return entry.substr(0, entry.find('=')); }

// As TurnOffNcclPlugins leaves it.
bool IsPluginTurnedOff(absl::string_view entry) {
  return std::any_of(kPlugins.begin(), kPlugins.end(), [&](absl::string_view plugin) {
    return NameOf(entry) == plugin && absl::EndsWith(entry, "=none");
  });
}

std::vector<std::string> LinesOf(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

}  // namespace

absl::Status CheckNcclSettings(const std::vector<NcclSettingsSource>& sources) {
  std::vector<std::string> problems;
  for (const NcclSettingsSource& source : sources) {
    for (const std::string& entry : source.entries) {
      const absl::string_view name = NameOf(entry);
      if (!absl::StartsWith(name, kPrefix) || IsPluginTurnedOff(entry)) continue;
      if (IsNcclVariable(name)) continue;
      problems.push_back(absl::StrCat(name, " is set in ", source.name,
                                      absl::EndsWith(name, "_PLUGIN")
                                          ? ", and would load code that is no part of this worker"
                                          : ""));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      absl::StrJoin(problems, "; "), ": unset it. Of NCCL's variables ", NcclVariablesInWords()));
}

std::vector<NcclSettingsSource> ReadNcclSettings() {
  std::vector<NcclSettingsSource> sources(1);
  sources[0].name = "the environment";
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    sources[0].entries.emplace_back(*entry);
  }
  std::vector<std::string> files = {"/etc/nccl.conf"};
  if (const char* const home = std::getenv("HOME"); home != nullptr) {
    files.push_back(absl::StrCat(home, "/.nccl.conf"));
  }
  for (const std::string& file : files) sources.push_back({file, LinesOf(file)});
  return sources;
}

void SetNcclVariables(const std::map<std::string, std::string>& variables) {
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
}

uint64_t RaiseLockedMemory() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 0;
  if (limit.rlim_cur == limit.rlim_max) return limit.rlim_cur;
  const rlimit raised = {limit.rlim_max, limit.rlim_max};
  return setrlimit(RLIMIT_MEMLOCK, &raised) == 0 ? raised.rlim_cur : limit.rlim_cur;
}

std::string WhyNoRdma(const std::string& devices, uint64_t locked_bytes) {
  struct stat info = {};
  if (locked_bytes >= kLeastLockedBytes || stat(devices.c_str(), &info) != 0) return "";
  return absl::StrCat(
      "there are network cards for RDMA (", devices, "), but this process may lock only ",
      locked_bytes >> 10,
      " KiB of memory, so NCCL cannot register its buffers and falls back to sockets: set "
      "LimitMEMLOCK=infinity for the container runtime of the node (containerd.service)");
}

void TurnOffNcclPlugins() {
  for (const char* const plugin : kPlugins) setenv(plugin, "none", 1);
}

}  // namespace rempart::worker
