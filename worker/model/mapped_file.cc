// SPDX-License-Identifier: Apache-2.0
#include "worker/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rempart::worker {

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    if (error == EACCES) {
      return absl::PermissionDeniedError(absl::StrCat(
          path, ": permission denied; let the user that runs the worker read the file"));
    }
    if (error == EMFILE || error == ENFILE) {
      return absl::FailedPreconditionError(absl::StrCat(
          path, ": ", std::strerror(error), "; raise the limit of open files (ulimit -n)"));
    }
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(error),
                                            "; check the path of the model and its volume"));
  }
  struct stat info = {};
  const bool is_file = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  if (!is_file || info.st_size == 0) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, is_file ? ": the file is empty; download it again"
                                   : ": not a regular file; name a model file"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  if (data == MAP_FAILED) {
    close(fd);
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": cannot map ", size, " bytes: ", std::strerror(error)));
  }
  return MappedFile(path, absl::MakeConstSpan(static_cast<const uint8_t*>(data), size), fd);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      bytes_(std::exchange(other.bytes_, {})),
      pages_(std::move(other.pages_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  std::swap(pages_, other.pages_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

MappedFile::~MappedFile() {
  pages_ = FilePages();
  if (!bytes_.empty()) munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
  if (descriptor_ >= 0) close(descriptor_);
}

void MappedFile::DropResidentPages() const {
  // Only a hint: a failure leaves the pages resident, which is correct.
  (void)madvise(const_cast<uint8_t*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

}  // namespace rempart::worker
