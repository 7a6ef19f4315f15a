// SPDX-License-Identifier: Apache-2.0
#include "worker/device/disk_space.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 1;
}

}  // namespace

double DiskSpace::free_share() const {
  return std::min(Share(free_bytes, size_bytes), Share(free_inodes, size_inodes));
}

bool DiskSpace::lacks_inodes() const {
  return Share(free_inodes, size_inodes) < Share(free_bytes, size_bytes);
}

absl::StatusOr<DiskSpace> ReadDiskSpace(const std::string& path, const std::string& name) {
  struct statvfs disk = {};
  if (statvfs(path.c_str(), &disk) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the free space at ", path));
  }
  const auto unit = static_cast<int64_t>(disk.f_frsize);
  DiskSpace space;
  space.name = name;
  space.size_bytes = static_cast<int64_t>(disk.f_blocks) * unit;
  space.free_bytes = static_cast<int64_t>(disk.f_bavail) * unit;
  space.size_inodes = static_cast<int64_t>(disk.f_files);
  space.free_inodes = static_cast<int64_t>(disk.f_favail);
  return space;
}

std::vector<DiskSpace> ReadNodeDisks(const std::string& root) {
  std::vector<DiskSpace> disks;
  for (const auto& [path, name] : {std::pair("/etc/hosts", "the node's disk"),
                                   std::pair("/", "the disk of the node's images")}) {
    absl::StatusOr<DiskSpace> space = ReadDiskSpace(absl::StrCat(root, path), name);
    if (space.ok()) disks.push_back(*std::move(space));
  }
  return disks;
}

std::vector<DiskSpace>::const_iterator FullestOf(const std::vector<DiskSpace>& disks) {
  return std::min_element(disks.begin(), disks.end(), [](const DiskSpace& a, const DiskSpace& b) {
    return a.free_share() < b.free_share();
  });
}

std::string DiskWatch::Observe(const std::vector<DiskSpace>& disks) {
  const auto fullest = FullestOf(disks);
  if (fullest == disks.end()) return "";
  const double left = fullest->free_share();
  while (passed_ > 0 && left >= kLimits[passed_ - 1] * kEnough) --passed_;
  while (passed_ < static_cast<int>(std::size(kLimits)) && left < kLimits[passed_]) ++passed_;
  if (passed_ == 0) return "";
  const int percent = static_cast<int>(kLimits[passed_ - 1] * 100 + 0.5);
  return absl::StrCat(fullest->name, " is nearly full: less than ", percent, " % of its ",
                      fullest->lacks_inodes() ? "inodes" : "space",
                      " is free. Its kubelet ends pods when it has too little (below 10 % by "
                      "default): delete what is not needed there");
}

}  // namespace rempart::worker
