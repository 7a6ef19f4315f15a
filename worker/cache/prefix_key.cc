// SPDX-License-Identifier: Apache-2.0
#include "worker/cache/prefix_key.h"

#include <openssl/evp.h>

#include <cstring>

#include "common/check.h"

namespace rempart::worker {
namespace {

// The kinds of input, so that no salt can be taken for a block.
constexpr char kSaltInput = 's';
constexpr char kBlockInput = 'b';

// A digest context of the calling thread: making one costs more than a block's hash.
class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new()) { CHECK(context_ != nullptr); }
  ~Digest() { EVP_MD_CTX_free(context_); }
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void Begin() { CHECK_EQ(EVP_DigestInit_ex(context_, EVP_sha256(), nullptr), 1); }
  void Add(const void* data, size_t size) { CHECK_EQ(EVP_DigestUpdate(context_, data, size), 1); }
  PrefixKey End() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    CHECK_EQ(EVP_DigestFinal_ex(context_, digest, nullptr), 1);
    PrefixKey key;
    std::memcpy(&key.high, digest, sizeof key.high);
    std::memcpy(&key.low, digest + sizeof key.high, sizeof key.low);
    return key;
  }

 private:
  EVP_MD_CTX* const context_;
};

Digest& ThreadDigest() {
  thread_local Digest digest;
  return digest;
}

}  // namespace

PrefixKey SaltKey(absl::string_view salt) {
  Digest& digest = ThreadDigest();
  digest.Begin();
  digest.Add(&kSaltInput, 1);
  digest.Add(salt.data(), salt.size());
  return digest.End();
}

PrefixKey NextKey(const PrefixKey& before, absl::Span<const int32_t> tokens) {
  Digest& digest = ThreadDigest();
  digest.Begin();
  digest.Add(&kBlockInput, 1);
  digest.Add(&before.high, sizeof before.high);
  digest.Add(&before.low, sizeof before.low);
  digest.Add(tokens.data(), tokens.size() * sizeof(int32_t));
  return digest.End();
}

}  // namespace rempart::worker
