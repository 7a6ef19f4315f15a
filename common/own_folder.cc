// SPDX-License-Identifier: Apache-2.0
#include "common/own_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart {

absl::Status MakeOwnFolder(absl::string_view what, const std::string& folder) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(folder).parent_path(), ignored);
  // It may be there; what is there is looked at below.
  const int error = mkdir(folder.c_str(), 0700) == 0 ? 0 : errno;
  struct stat info = {};
  if (lstat(folder.c_str(), &info) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, " ", folder, " cannot be made: ", std::strerror(error)));
  }
  const bool is_own = info.st_uid == geteuid() && (info.st_mode & (S_IWGRP | S_IWOTH)) == 0;
  if (S_ISDIR(info.st_mode) && is_own) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(what, " ", folder,
                   " is not used: it must be a folder that belongs to the user of this process (",
                   geteuid(), ") and that nobody else may write to (chmod 700)"));
}

absl::Status MakeWritableFolder(absl::string_view what, const std::string& folder) {
  RETURN_IF_ERROR(MakeOwnFolder(what, folder));
  std::string probe = folder + "/probe.XXXXXX";
  const int file = mkostemp(probe.data(), O_CLOEXEC);
  if (file < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, " ", folder, " cannot be written to: ", std::strerror(errno)));
  }
  close(file);
  unlink(probe.c_str());
  return absl::OkStatus();
}

}  // namespace rempart
