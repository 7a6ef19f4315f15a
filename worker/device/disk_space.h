// SPDX-License-Identifier: Apache-2.0
// How full the disks of the node are that this pod lives on. A kubelet looks at them every ten
// seconds, and ends pods of a node whose disk is nearly full; whoever watches is warned before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rempart::worker {

struct DiskSpace {
  std::string name = {};  // in a message: "the node's disk"
  int64_t size_bytes = 0;
  int64_t free_bytes = 0;   // to processes without privileges
  int64_t size_inodes = 0;  // 0: the file system does not count them
  int64_t free_inodes = 0;

  // Of 0 to 1: the lesser of bytes and inodes, which a full disk may lack as well.
  double free_share() const;
  bool lacks_inodes() const;
};

// NotFound or another error of statvfs, with the path.
absl::StatusOr<DiskSpace> ReadDiskSpace(const std::string& path, const std::string& name);

// In a container: the disk of the kubelet's folder, from which /etc/hosts is mounted, and the one
// that holds images and what containers write. What cannot be read is left out. `root` is "" for
// the real ones.
std::vector<DiskSpace> ReadNodeDisks(const std::string& root);

// The end where there are none.
std::vector<DiskSpace>::const_iterator FullestOf(const std::vector<DiskSpace>& disks);

// Says in words that stay the same while little changes, that a disk is nearly full.
class DiskWatch {
 public:
  // A kubelet evicts pods below a tenth free, unless it is configured otherwise.
  static constexpr double kLimits[] = {0.1, 0.05, 0.01};
  // Times a limit: must be free before it counts as passed no longer.
  static constexpr double kEnough = 1.2;

  // Empty while there is enough on all.
  std::string Observe(const std::vector<DiskSpace>& disks);

 private:
  int passed_ = 0;  // limits, by the fullest disk
};

}  // namespace rempart::worker
