// SPDX-License-Identifier: Apache-2.0
// A file mapped read-only into memory. Movable; the bytes live until it is destroyed. Pages are
// shared with every other process that maps the file.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/model/file_pages.h"

namespace rempart::worker {

class MappedFile {
 public:
  // NotFound when there is no such file; InvalidArgument when it is empty or not a regular file;
  // FailedPrecondition when too many are open.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  absl::Span<const uint8_t> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }
  // Open for reading as long as it is mapped, of the same file whatever its path names by then.
  int descriptor() const { return descriptor_; }
  // Tells the kernel that resident pages are not needed soon; they can be read again at any time.
  void DropResidentPages() const;

 private:
  MappedFile(std::string path, absl::Span<const uint8_t> bytes, int descriptor)
      : path_(std::move(path)), bytes_(bytes), pages_(bytes_, path_), descriptor_(descriptor) {}

  std::string path_;
  absl::Span<const uint8_t> bytes_;
  FilePages pages_;
  int descriptor_ = -1;
};

}  // namespace rempart::worker
