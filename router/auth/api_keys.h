// SPDX-License-Identifier: Apache-2.0
// Who may call: a file of lines "name:digest", where digest is the SHA-256 of an API key in
// hexadecimal. Keys themselves are never stored.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/mutex.h"

namespace rempart::router {

using KeyDigest = std::array<uint8_t, 32>;

struct ApiKey {
  std::string name;
  KeyDigest digest;
};

// InvalidArgument naming the line.
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(absl::string_view text);

// The name of the key, or nullopt. Takes the same time for every key of a list, right or wrong.
std::optional<std::string> FindKey(const std::vector<ApiKey>& keys, absl::string_view key);

// The key of an Authorization header "Bearer KEY"; empty when it is none.
absl::string_view BearerKey(absl::string_view authorization);

// The list of a file, as last read without error. Any thread.
class ApiKeyFile {
 public:
  static absl::StatusOr<std::unique_ptr<ApiKeyFile>> Open(const std::string& path);

  // Reads the file again when it changed. On an error the last good list stays.
  absl::Status Refresh();
  std::shared_ptr<const std::vector<ApiKey>> keys() const;

 private:
  explicit ApiKeyFile(std::string path) : path_(std::move(path)) {}

  const std::string path_;
  mutable Mutex mu_;
  std::string text_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const std::vector<ApiKey>> keys_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::router
