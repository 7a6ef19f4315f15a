// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/record_cipher.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>

#include <cstring>

#include "common/check.h"

namespace rempart::worker {
namespace {

constexpr int kTagBytes = 16;

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

RecordCipher::RecordCipher(Direction direction, absl::string_view secret)
    : context_(EVP_CIPHER_CTX_new()) {
  CHECK(context_ != nullptr);
  CHECK_EQ(secret.size(), kKeyBytes + base_.size());
  std::memcpy(base_.data(), secret.data() + kKeyBytes, base_.size());
  CHECK_EQ(EVP_CipherInit_ex(context_.get(), EVP_aes_256_gcm(), nullptr, Bytes(secret), nullptr,
                             direction == Direction::kSeal ? 1 : 0),
           1);
}

void RecordCipher::NextNonce() {
  nonce_ = base_;
  for (int i = 0; i < 8; ++i) nonce_[4 + i] ^= static_cast<uint8_t>(record_ >> (8 * (7 - i)));
  ++record_;
  CHECK_NE(record_, 0u);
  CHECK_EQ(EVP_CipherInit_ex(context_.get(), nullptr, nullptr, nullptr, nonce_.data(), -1), 1);
}

void RecordCipher::Seal(absl::Span<const Piece> pieces, int64_t bytes, uint8_t* out) {
  NextNonce();
  const auto length = static_cast<uint32_t>(bytes);
  std::memcpy(out, &length, 4);
  int written = 0;
  CHECK_EQ(EVP_EncryptUpdate(context_.get(), nullptr, &written, out, 4), 1);
  uint8_t* to = out + 4;
  for (const Piece& piece : pieces) {
    CHECK_EQ(
        EVP_EncryptUpdate(context_.get(), to, &written, piece.data, static_cast<int>(piece.bytes)),
        1);
    to += piece.bytes;
  }
  CHECK_EQ(EVP_EncryptFinal_ex(context_.get(), to, &written), 1);
  CHECK_EQ(EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes, to), 1);
}

bool RecordCipher::Open(const uint8_t* record, absl::Span<const Piece> pieces, int64_t bytes) {
  NextNonce();
  int written = 0;
  if (EVP_DecryptUpdate(context_.get(), nullptr, &written, record, 4) != 1) return false;
  const uint8_t* from = record + 4;
  for (const Piece& piece : pieces) {
    if (EVP_DecryptUpdate(context_.get(), piece.data, &written, from,
                          static_cast<int>(piece.bytes)) != 1) {
      return false;
    }
    from += piece.bytes;
  }
  // The tag is read only.
  auto* tag = const_cast<uint8_t*>(record + 4 + bytes);
  uint8_t nothing[kTagBytes];
  return EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, tag) == 1 &&
         EVP_DecryptFinal_ex(context_.get(), nothing, &written) == 1;
}

std::string Hmac(absl::string_view key, std::initializer_list<absl::string_view> parts) {
  std::string all;
  for (const absl::string_view part : parts) all.append(part.data(), part.size());
  std::string mac(32, '\0');
  unsigned int length = 0;
  CHECK(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), Bytes(all), all.size(),
             reinterpret_cast<unsigned char*>(mac.data()), &length) != nullptr);
  return mac;
}

std::string Hkdf(absl::string_view key, absl::string_view salt, absl::string_view info,
                 int64_t bytes) {
  EVP_KDF* kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
  CHECK(kdf != nullptr);
  EVP_KDF_CTX* context = EVP_KDF_CTX_new(kdf);
  EVP_KDF_free(kdf);
  CHECK(context != nullptr);
  char digest[] = "SHA256";
  // Parameters are read only.
  const auto octets = [](const char* name, absl::string_view value) {
    return OSSL_PARAM_construct_octet_string(name, const_cast<char*>(value.data()), value.size());
  };
  const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
                               octets(OSSL_KDF_PARAM_KEY, key), octets(OSSL_KDF_PARAM_SALT, salt),
                               octets(OSSL_KDF_PARAM_INFO, info), OSSL_PARAM_construct_end()};
  std::string out(bytes, '\0');
  const int derived =
      EVP_KDF_derive(context, reinterpret_cast<unsigned char*>(out.data()), out.size(), params);
  EVP_KDF_CTX_free(context);
  CHECK_EQ(derived, 1);
  return out;
}

std::string RandomBytes(int64_t bytes) {
  std::string out(bytes, '\0');
  CHECK_EQ(RAND_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(bytes)), 1);
  return out;
}

bool SameBytes(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace rempart::worker
