// SPDX-License-Identifier: Apache-2.0
#include "router/auth/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace rempart::router {
namespace {

constexpr size_t kMaxFileBytes = 16 << 20;

absl::StatusOr<ApiKey> ParseLine(absl::string_view line) {
  const size_t colon = line.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) {
    return absl::InvalidArgumentError("must read name:digest");
  }
  const absl::string_view hex = line.substr(colon + 1);
  bool is_hex = hex.size() == 64;
  for (const char c : hex) is_hex = is_hex && absl::ascii_isxdigit(static_cast<unsigned char>(c));
  if (!is_hex) {
    return absl::InvalidArgumentError("needs a SHA-256 digest of 64 hexadecimal digits");
  }
  ApiKey key;
  key.name = std::string(line.substr(0, colon));
  const std::string bytes = absl::HexStringToBytes(hex);
  std::memcpy(key.digest.data(), bytes.data(), key.digest.size());
  return key;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("apiKeysFile ", path, ": ", std::strerror(errno)));
  }
  std::ostringstream content;
  content << file.rdbuf();
  if (content.str().size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat("apiKeysFile ", path, " exceeds 16 MiB"));
  }
  return content.str();
}

}  // namespace

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(absl::string_view text) {
  std::vector<ApiKey> keys;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    absl::StatusOr<ApiKey> key = ParseLine(line);
    if (!key.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("API keys: line ", number, " ", key.status().message()));
    }
    keys.push_back(*std::move(key));
  }
  return keys;
}

std::optional<std::string> FindKey(const std::vector<ApiKey>& keys, absl::string_view key) {
  KeyDigest digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  std::optional<std::string> name;
  for (const ApiKey& candidate : keys) {
    if (CRYPTO_memcmp(candidate.digest.data(), digest.data(), digest.size()) == 0) {
      name = candidate.name;
    }
  }
  return name;
}

absl::string_view BearerKey(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return {};
  return absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
}

absl::StatusOr<std::unique_ptr<ApiKeyFile>> ApiKeyFile::Open(const std::string& path) {
  std::unique_ptr<ApiKeyFile> file(new ApiKeyFile(path));
  RETURN_IF_ERROR(file->Refresh());
  return file;
}

absl::Status ApiKeyFile::Refresh() {
  ASSIGN_OR_RETURN(std::string text, ReadText(path_));
  MutexLock lock(&mu_);
  if (keys_ != nullptr && text == text_) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::vector<ApiKey> keys, ParseApiKeys(text));
  keys_ = std::make_shared<const std::vector<ApiKey>>(std::move(keys));
  text_ = std::move(text);
  return absl::OkStatus();
}

std::shared_ptr<const std::vector<ApiKey>> ApiKeyFile::keys() const {
  MutexLock lock(&mu_);
  return keys_;
}

}  // namespace rempart::router
