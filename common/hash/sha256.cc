// SPDX-License-Identifier: Apache-2.0
#include "common/hash/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace rempart {

struct Sha256Hasher::Context {
  EVP_MD_CTX* const md = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(md); }
};

Sha256Hasher::Sha256Hasher() : context_(std::make_unique<Context>()) {
  CHECK(context_->md != nullptr);
  CHECK_EQ(EVP_DigestInit_ex(context_->md, EVP_sha256(), nullptr), 1);
}
Sha256Hasher::~Sha256Hasher() = default;

void Sha256Hasher::Add(const void* bytes, size_t size) {
  CHECK_EQ(EVP_DigestUpdate(context_->md, bytes, size), 1);
}

Sha256 Sha256Hasher::Finish() {
  Sha256 digest;
  unsigned int length = 0;
  CHECK_EQ(EVP_DigestFinal_ex(context_->md, digest.data(), &length), 1);
  return digest;
}

Sha256 HashOf(absl::Span<const uint8_t> bytes) {
  Sha256Hasher hasher;
  hasher.Add(bytes.data(), bytes.size());
  return hasher.Finish();
}

std::string DigestText(const Sha256& digest) {
  return absl::StrCat(
      "sha256:",
      absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), digest.size()}));
}

}  // namespace rempart
