// SPDX-License-Identifier: Apache-2.0
// What protects one direction of a link: AES-256-GCM records, with a key of this direction and this
// connection alone and the record's number in the nonce, so that nothing can be read, changed, left
// out, repeated or put elsewhere.
//
// A record on the wire: u32 length of the plaintext, which is authenticated too; ciphertext; tag.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace rempart::worker {

inline constexpr int64_t kRecordBytes = 64 << 10;  // of plaintext, at most
inline constexpr int64_t kRecordOverhead = 4 + 16;
inline constexpr int64_t kKeyBytes = 32;

// A piece of a plaintext that lies scattered in memory.
struct Piece {
  uint8_t* data = nullptr;
  int64_t bytes = 0;
};

class RecordCipher {
 public:
  enum class Direction { kSeal, kOpen };
  // `secret`: key and nonce base, kKeyBytes + 12 bytes.
  RecordCipher(Direction direction, absl::string_view secret);

  // Writes the next record, `bytes` + kRecordOverhead, to `out`.
  void Seal(absl::Span<const Piece> pieces, int64_t bytes, uint8_t* out);
  // Writes the plaintext of a whole record to the pieces; false when it is not the next record of
  // the peer. What was written then must not be used.
  bool Open(const uint8_t* record, absl::Span<const Piece> pieces, int64_t bytes);

 private:
  void NextNonce();

  struct Free {
    void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
  };
  std::unique_ptr<EVP_CIPHER_CTX, Free> context_;
  std::array<uint8_t, 12> base_;
  std::array<uint8_t, 12> nonce_;
  uint64_t record_ = 0;
};

// HMAC-SHA256 of the concatenated parts, 32 bytes.
std::string Hmac(absl::string_view key, std::initializer_list<absl::string_view> parts);
// HKDF-SHA256 (RFC 5869).
std::string Hkdf(absl::string_view key, absl::string_view salt, absl::string_view info,
                 int64_t bytes);
// Bytes that nobody can guess.
std::string RandomBytes(int64_t bytes);
// In constant time.
bool SameBytes(absl::string_view a, absl::string_view b);

}  // namespace rempart::worker
