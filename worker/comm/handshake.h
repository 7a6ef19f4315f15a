// SPDX-License-Identifier: Apache-2.0
// How two ranks prove to each other that they belong to the same epoch, before a byte of a
// collective passes. The rank of the later pod dials.
//
//   dialler -> acceptor   Hello   magic, epoch, ranks, size, flags, nonce
//   acceptor -> dialler   Answer  verdict, its epoch, nonce, HMAC(key, "acceptor", Hello, Answer)
//   dialler -> acceptor   Proof   HMAC(key, "dialler", Hello, Answer)
//   acceptor -> dialler   Accepted, one byte
//
// The HMAC is SHA-256 under the epoch's key, which both got over their authenticated Join stream.
// All sizes are fixed: whatever a stranger sends, nobody reads more than that. An Answer whose
// verdict is not kWelcome carries zeros for nonce and HMAC, and ends the connection.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rempart::worker {

inline constexpr int64_t kHelloBytes = 52;
inline constexpr int64_t kAnswerBytes = 72;
inline constexpr int64_t kProofBytes = 32;
inline constexpr char kAcceptedByte = 'A';

enum class Verdict : uint8_t { kWelcome, kOtherEpoch, kOtherGroup, kOtherEncryption };

struct Hello {
  int32_t epoch = 0;
  int32_t from = 0;  // ranks
  int32_t to = 0;
  int32_t size = 0;
  bool encrypted = false;
  std::string nonce;  // 32 bytes
};

struct Answer {
  Verdict verdict = Verdict::kWelcome;
  int32_t epoch = 0;
  std::string nonce;  // 32 bytes
};

std::string EncodeHello(const Hello& hello);
// InvalidArgument when the bytes are not a Hello: a stranger.
absl::StatusOr<Hello> DecodeHello(absl::string_view bytes);

// With its HMAC when the verdict is kWelcome.
std::string EncodeAnswer(const Answer& answer, absl::string_view key, absl::string_view hello);
// Unauthenticated when the acceptor does not know the key; FailedPrecondition says what it has
// against us (another epoch: it may be there soon).
absl::Status CheckAnswer(absl::string_view answer, absl::string_view key, absl::string_view hello);
std::string EncodeProof(absl::string_view key, absl::string_view hello, absl::string_view answer);
bool CheckProof(absl::string_view proof, absl::string_view key, absl::string_view hello,
                absl::string_view answer);

// What protects the two directions afterwards.
struct LinkSecrets {
  std::string of_dialler;  // what the dialler sends
  std::string of_acceptor;
};
LinkSecrets DeriveSecrets(absl::string_view key, absl::string_view hello, absl::string_view answer);

}  // namespace rempart::worker
