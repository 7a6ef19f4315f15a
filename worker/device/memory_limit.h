// SPDX-License-Identifier: Apache-2.0
// How much memory this process may use, and when it is about to run into that limit.
#pragma once

#include <cstdint>
#include <string>

namespace rempart::worker {

// The limit that leaves least: the machine's memory, or that of a cgroup this process is in.
struct MemoryUse {
  int64_t limit_bytes = 0;
  // What cannot be taken back: pages of files, such as mapped weights, do not count.
  int64_t used_bytes = 0;
  // What sets the limit: the machine, or the controller's file.
  std::string limit_of = kTheMachine;
  static constexpr char kTheMachine[] = "the machine";
  bool is_of_machine() const { return limit_of == kTheMachine; }
  int64_t left_bytes() const { return limit_bytes > used_bytes ? limit_bytes - used_bytes : 0; }
};

// Reads /proc/meminfo and the memory controller (v2 or v1) of the process's cgroup and of those
// above it, as far as they are visible under `root`/sys/fs/cgroup; `root` is "" for the real ones.
MemoryUse ReadMemoryUse(const std::string& root);

// Decides when memory is short, with some way between short and enough, so that it does not flap.
class MemoryWatch {
 public:
  static constexpr int64_t kShortBytes = int64_t{32} << 20;   // left
  static constexpr int64_t kEnoughBytes = int64_t{48} << 20;  // left

  // Why memory is short, in words with the figures; empty while there is enough.
  std::string Observe(const MemoryUse& use);

 private:
  bool short_ = false;
};

}  // namespace rempart::worker
