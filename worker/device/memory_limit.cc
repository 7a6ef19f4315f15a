// SPDX-License-Identifier: Apache-2.0
#include "worker/device/memory_limit.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;

// The number in a file, or -1: no file, or "max".
int64_t ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = -1;
  if (!(file >> value)) return -1;
  return value;
}

// Lines of "key value" or "key: value kB".
std::map<std::string, int64_t> ReadTable(const std::string& path) {
  std::map<std::string, int64_t> table;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key;
    int64_t value = 0;
    if (!(words >> key >> value)) continue;
    if (key.back() == ':') key.pop_back();
    table[key] = value;
  }
  return table;
}

// The names of the figures in one version of the controller.
struct Files {
  const char* limit;
  const char* usage;
  const char* inactive;  // in memory.stat: pages of files
  const char* active;
};

constexpr Files kV2 = {"/memory.max", "/memory.current", "inactive_file", "active_file"};
constexpr Files kV1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file",
                       "total_active_file"};

void Tighten(const std::string& folder, const Files& files, MemoryUse& tightest) {
  MemoryUse use{ReadNumber(folder + files.limit), ReadNumber(folder + files.usage),
                folder + files.limit};
  std::map<std::string, int64_t> stat = ReadTable(folder + "/memory.stat");
  // Of v1: the least of all groups above too, which a container does not see. What others use of it
  // stays unknown.
  const auto above = stat.find("hierarchical_memory_limit");
  if (above != stat.end() && above->second > 0 && above->second < use.limit_bytes) {
    use.limit_bytes = above->second;
    use.limit_of = folder + "/memory.stat";
  }
  if (use.limit_bytes <= 0 || use.used_bytes < 0) return;
  const int64_t of_files = stat[files.inactive] + stat[files.active];
  use.used_bytes = std::max<int64_t>(0, use.used_bytes - of_files);
  if (use.left_bytes() < tightest.left_bytes()) tightest = use;
}

}  // namespace

MemoryUse ReadMemoryUse(const std::string& root) {
  MemoryUse tightest;
  tightest.limit_bytes = std::numeric_limits<int64_t>::max();
  std::map<std::string, int64_t> machine = ReadTable(root + "/proc/meminfo");
  if (machine.count("MemTotal") > 0 && machine.count("MemAvailable") > 0) {
    tightest.limit_bytes = machine["MemTotal"] * 1024;
    tightest.used_bytes = (machine["MemTotal"] - machine["MemAvailable"]) * 1024;
  }
  std::ifstream cgroups(root + "/proc/self/cgroup");
  const std::string mount = root + "/sys/fs/cgroup";
  for (std::string line; std::getline(cgroups, line);) {
    // hierarchy-id:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && ("," + controllers + ",").find(",memory,") == std::string::npos) continue;
    const std::string base = v2 ? mount : mount + "/memory";
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    // In a container the path may be one of the host, which is not visible; the base then is the
    // container's own.
    for (;;) {
      Tighten(base + path, v2 ? kV2 : kV1, tightest);
      if (path.empty()) break;
      path.resize(std::min(path.rfind('/'), path.size() - 1));
    }
  }
  return tightest;
}

std::string MemoryWatch::Observe(const MemoryUse& use) {
  short_ = use.left_bytes() < (short_ ? kEnoughBytes : kShortBytes);
  if (!short_) return "";
  return absl::StrCat(use.used_bytes / kMiB, " of ", use.limit_bytes / kMiB, " MiB are in use");
}

}  // namespace rempart::worker
