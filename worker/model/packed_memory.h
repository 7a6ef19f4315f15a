// SPDX-License-Identifier: Apache-2.0
// One range of memory that holds all repacked weights of a model: private pages, in huge ones where
// the system has them, or a file of the repack cache, whose pages all processes share. Movable; the
// bytes stay where they are until it is destroyed.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/model/file_pages.h"

namespace rempart::worker {

class PackedMemory {
 public:
  PackedMemory() = default;
  // Zeroed private memory, aligned to 4 KiB. ResourceExhausted says how much is missing.
  static absl::StatusOr<PackedMemory> Allocate(int64_t bytes);
  // `bytes` of the open file `path` from `offset` (a multiple of 4 KiB), read-only. The descriptor
  // stays the caller's.
  static absl::StatusOr<PackedMemory> MapFile(int fd, const std::string& path, int64_t offset,
                                              int64_t bytes);
  PackedMemory(PackedMemory&& other) noexcept;
  PackedMemory& operator=(PackedMemory&& other) noexcept;
  ~PackedMemory();

  bool is_file() const { return is_file_; }
  absl::Span<const uint8_t> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  // Of private memory only.
  uint8_t* writable() { return is_file_ ? nullptr : data_; }

 private:
  PackedMemory(uint8_t* data, int64_t size, bool is_file)
      : data_(data), size_(size), is_file_(is_file) {}

  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  bool is_file_ = false;
  FilePages pages_;
};

}  // namespace rempart::worker
