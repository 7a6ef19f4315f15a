// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/ops.h"

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

// The first line of a /proc file that begins with `key`, after its colon.
std::string ProcLine(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, key)) return line.substr(line.find(':') + 1);
  }
  return "";
}

bool CheckProcessor() {
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  const kernels::Ops& best = kernels::BestOps();
  std::string others;
  for (const kernels::OpsTier& tier : kernels::AllOps()) {
    if (!tier.is_supported || tier.is_twin || tier.ops == &best) continue;
    absl::StrAppend(&others, others.empty() ? "" : ", ", tier.ops->name);
  }
  const bool is_fast = std::string(best.name) != "baseline";
  Print(is_fast ? Verdict::kGood : Verdict::kNote,
        absl::StrCat("processor: ", cores, " cores; kernels ", best.name, " (", best.description,
                     "); also ", others,
                     is_fast ? "" : ": models run, slowly; use a machine with AVX2 for real work"));
  return true;
}

bool CheckMemory() {
  int64_t kib = 0;
  const std::string line = ProcLine("/proc/meminfo", "MemAvailable");
  for (const auto word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
    if (absl::SimpleAtoi(word, &kib)) break;
  }
  const int64_t mib = kib / 1024;
  const bool enough = mib >= kLittleMemoryMib;
  Print(enough ? Verdict::kGood : Verdict::kNote,
        absl::StrCat("memory: ", mib, " MiB available",
                     enough ? "" : ": only the smallest models fit; stop other programs"));
  return true;
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

bool CheckFolder() {
  const bool writable = access("/tmp", W_OK | X_OK) == 0;
  Print(writable ? Verdict::kGood : Verdict::kBad,
        writable ? "folder: /tmp is writable"
                 : "folder: /tmp is not writable: sockets and logs have no place; mount it, or set "
                   "XDG_RUNTIME_DIR");
  return writable || getenv("XDG_RUNTIME_DIR") != nullptr;
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

int RunDoctor() {
  bool usable = CheckProcessor();
  usable = CheckMemory() && usable;
  usable = CheckPort() && usable;
  usable = CheckFolder() && usable;
  CheckContainers();
  return usable ? 0 : 1;
}

}  // namespace rempart::cli
