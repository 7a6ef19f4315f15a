// SPDX-License-Identifier: Apache-2.0
#include "worker/device/numa.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace rempart::worker {
namespace {

// Both for CPUs and for nodes; more than any machine of today has.
constexpr int32_t kMaxNumber = 65536;

// "0-3,8" as 0, 1, 2, 3, 8. Empty for anything else, and where there is no such file.
std::vector<int32_t> ReadList(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  std::getline(file, text);
  std::vector<int32_t> numbers;
  for (absl::string_view part :
       absl::StrSplit(absl::StripAsciiWhitespace(text), ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(part, absl::MaxSplits('-', 1));
    int32_t first = 0, last = 0;
    if (!absl::SimpleAtoi(ends.first, &first)) return {};
    last = first;
    if (!ends.second.empty() && !absl::SimpleAtoi(ends.second, &last)) return {};
    if (first < 0 || last < first || last >= kMaxNumber) return {};
    for (int32_t number = first; number <= last; ++number) numbers.push_back(number);
  }
  return numbers;
}

}  // namespace

std::vector<int32_t> AllowedCpus() {
  std::vector<int32_t> cpus;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return cpus;
  for (int32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
  return cpus;
}

std::vector<NumaNode> ReadNumaNodes(const std::string& root, absl::Span<const int32_t> allowed) {
  const std::string folder = root + "/sys/devices/system/node";
  std::vector<NumaNode> nodes;
  for (const int32_t id : ReadList(folder + "/online")) {
    NumaNode node = {id, {}};
    for (const int32_t cpu : ReadList(absl::StrCat(folder, "/node", id, "/cpulist"))) {
      if (std::find(allowed.begin(), allowed.end(), cpu) != allowed.end()) {
        node.cpus.push_back(cpu);
      }
    }
    // A node may have memory alone.
    if (!node.cpus.empty()) nodes.push_back(std::move(node));
  }
  return nodes;
}

std::vector<NumaNode> PlaceRanks(const std::vector<NumaNode>& nodes, int32_t ranks,
                                 int32_t threads) {
  if (nodes.size() < 2 || ranks < 2) return {};
  const auto node_count = static_cast<int32_t>(nodes.size());
  std::vector<NumaNode> places;
  std::vector<int32_t> threads_on(nodes.size());
  for (int32_t rank = 0; rank < ranks; ++rank) {
    const auto index = static_cast<size_t>(int64_t{rank} * node_count / ranks);
    threads_on[index] += threads;
    if (threads_on[index] > static_cast<int32_t>(nodes[index].cpus.size())) return {};
    places.push_back(nodes[index]);
  }
  return places;
}

void BindThisThread(absl::Span<const int32_t> cpus) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int32_t cpu : cpus) {
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  }
  (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

void RunBound(absl::Span<const int32_t> cpus, absl::FunctionRef<void()> body) {
  if (cpus.empty()) return body();
  std::thread thread([&] {
    BindThisThread(cpus);
    body();
  });
  thread.join();
}

}  // namespace rempart::worker
