// SPDX-License-Identifier: Apache-2.0
#include "worker/model/packed_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rempart::worker {

absl::StatusOr<PackedMemory> PackedMemory::Allocate(int64_t bytes) {
  if (bytes == 0) return PackedMemory();
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", bytes >> 20, " MiB of repacked weights"));
  }
  // Only a hint: without huge pages the weights are read through more address translations.
  (void)madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return PackedMemory(static_cast<uint8_t*>(data), bytes, false);
}

absl::StatusOr<PackedMemory> PackedMemory::MapFile(int fd, const std::string& path, int64_t offset,
                                                   int64_t bytes) {
  if (bytes == 0) return PackedMemory();
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, fd, offset);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot map ", bytes >> 20, " MiB of repacked weights: ", std::strerror(errno)));
  }
  PackedMemory memory(static_cast<uint8_t*>(data), bytes, true);
  memory.pages_ = FilePages(memory.bytes(), path);
  return memory;
}

PackedMemory::PackedMemory(PackedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      is_file_(other.is_file_),
      pages_(std::move(other.pages_)) {}

PackedMemory& PackedMemory::operator=(PackedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(is_file_, other.is_file_);
  std::swap(pages_, other.pages_);
  return *this;
}

PackedMemory::~PackedMemory() {
  pages_ = FilePages();
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_));
}

}  // namespace rempart::worker
