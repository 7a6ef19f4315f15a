// SPDX-License-Identifier: Apache-2.0
#include "cli/run_folder.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace rempart::cli {

std::string RunFolder::Base() {
  const char* base = std::getenv("XDG_RUNTIME_DIR");
  return base != nullptr && access(base, W_OK | X_OK) == 0 ? base : "/tmp";
}

absl::StatusOr<std::unique_ptr<RunFolder>> RunFolder::Create() {
  // Short, because a unix socket's path has at most 107 bytes.
  std::string path = Base() + "/rempart-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot make a folder ", path, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<RunFolder>(new RunFolder(path));
}

RunFolder::~RunFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::Status RunFolder::Write(const std::string& name, const std::string& content) const {
  const std::string path = Path(name);
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const bool written =
      fd >= 0 && write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size());
  const int error = errno;
  if (fd >= 0) close(fd);
  if (written) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot write ", path, ": ", std::strerror(error)));
}

absl::StatusOr<NewKey> DrawKey(const std::string& name) {
  unsigned char secret[24];
  if (RAND_bytes(secret, sizeof(secret)) != 1) {
    return absl::InternalError("the system gives no random bytes for an API key");
  }
  NewKey drawn;
  drawn.key = absl::StrCat("rmp-", absl::BytesToHexString(absl::string_view(
                                       reinterpret_cast<const char*>(secret), sizeof(secret))));
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(drawn.key.data()), drawn.key.size(), digest);
  drawn.line = absl::StrCat(name, ":",
                            absl::BytesToHexString(absl::string_view(
                                reinterpret_cast<const char*>(digest), sizeof(digest))),
                            "\n");
  return drawn;
}

}  // namespace rempart::cli
