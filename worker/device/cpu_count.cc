// SPDX-License-Identifier: Apache-2.0
#include "worker/device/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

namespace rempart::worker {
namespace {

// First two words of a file.
bool ReadWords(const std::string& path, std::string* first, std::string* second) {
  std::ifstream file(path);
  if (!(file >> *first)) return false;
  file >> *second;
  return true;
}

void LowerTo(std::optional<double>* quota, double limit) {
  if (limit > 0 && (!quota->has_value() || limit < **quota)) *quota = limit;
}

void LowerToV2(const std::string& folder, std::optional<double>* quota) {
  std::string limit, period;
  if (!ReadWords(folder + "/cpu.max", &limit, &period) || limit == "max") return;
  const double period_us = std::atof(period.c_str());
  if (period_us > 0) LowerTo(quota, std::atof(limit.c_str()) / period_us);
}

void LowerToV1(const std::string& folder, std::optional<double>* quota) {
  std::string limit, period, rest;
  if (!ReadWords(folder + "/cpu.cfs_quota_us", &limit, &rest)) return;
  if (!ReadWords(folder + "/cpu.cfs_period_us", &period, &rest)) return;
  const double period_us = std::atof(period.c_str());
  if (period_us > 0) LowerTo(quota, std::atof(limit.c_str()) / period_us);
}

// Applies `lower` to base + path and every folder above it down to base itself. In a container the
// path may name a folder of the host that is not visible; base is then the container's own cgroup.
template <class Lower>
void Ancestors(const std::string& base, std::string path, Lower lower) {
  while (true) {
    lower(base + path);
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return;
    path.resize(slash);
  }
}

}  // namespace

std::optional<double> CgroupCpuQuota(const std::string& root) {
  std::optional<double> quota;
  std::ifstream cgroups(root + "/proc/self/cgroup");
  const std::string mount = root + "/sys/fs/cgroup";
  for (std::string line; std::getline(cgroups, line);) {
    // hierarchy-id:controller,controller:path
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(fields, id, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    if (path == "/") path.clear();
    if (controllers.empty()) {
      Ancestors(mount, path, [&](const std::string& at) { LowerToV2(at, &quota); });
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      for (const std::string& name : {std::string("cpu"), controllers}) {
        Ancestors(mount + "/" + name, path, [&](const std::string& at) { LowerToV1(at, &quota); });
      }
    }
  }
  return quota;
}

int UsableCpuCount() {
  cpu_set_t allowed;
  int count = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) count = CPU_COUNT(&allowed);
  const std::optional<double> quota = CgroupCpuQuota("");
  if (quota.has_value()) count = std::min(count, static_cast<int>(*quota));
  return std::max(count, 1);
}

int ThreadsFor(int wanted) {
  const int usable = UsableCpuCount();
  return wanted > 0 ? std::min(wanted, usable) : usable;
}

}  // namespace rempart::worker
