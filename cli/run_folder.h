// SPDX-License-Identifier: Apache-2.0
// The folder of one `rempart serve`: sockets, configurations and logs of its children. Only its
// owner may enter; it is removed with the object.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace rempart::cli {

class RunFolder {
 public:
  // Where it is made: $XDG_RUNTIME_DIR where one may write there, else /tmp.
  static std::string Base();
  static absl::StatusOr<std::unique_ptr<RunFolder>> Create();
  ~RunFolder();

  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  absl::Status Write(const std::string& name, const std::string& content) const;

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// A new API key, and the line of a key file that lets it in.
struct NewKey {
  std::string key;
  std::string line;
};
absl::StatusOr<NewKey> DrawKey(const std::string& name);

}  // namespace rempart::cli
