// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/handshake.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "worker/comm/record_cipher.h"

namespace rempart::worker {
namespace {

constexpr absl::string_view kMagic = "RMPCOMM1";
constexpr int64_t kNonceBytes = 32;
constexpr int64_t kSecretBytes = kKeyBytes + 12;
constexpr int64_t kAnswerHead = kAnswerBytes - 32;  // without the HMAC

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
T Get(absl::string_view bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

}  // namespace

std::string EncodeHello(const Hello& hello) {
  std::string out(kMagic);
  Put<uint32_t>(out, hello.epoch);
  Put<uint16_t>(out, hello.from);
  Put<uint16_t>(out, hello.to);
  Put<uint16_t>(out, hello.size);
  Put<uint16_t>(out, hello.encrypted ? 1 : 0);
  return out + hello.nonce;
}

absl::StatusOr<Hello> DecodeHello(absl::string_view bytes) {
  if (bytes.size() != kHelloBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("not a hello of a rank");
  }
  Hello hello;
  hello.epoch = static_cast<int32_t>(Get<uint32_t>(bytes, 8));
  hello.from = Get<uint16_t>(bytes, 12);
  hello.to = Get<uint16_t>(bytes, 14);
  hello.size = Get<uint16_t>(bytes, 16);
  hello.encrypted = Get<uint16_t>(bytes, 18) == 1;
  hello.nonce = std::string(bytes.substr(20));
  return hello;
}

std::string EncodeAnswer(const Answer& answer, absl::string_view key, absl::string_view hello) {
  std::string out;
  Put<uint32_t>(out, static_cast<uint32_t>(answer.verdict));
  Put<uint32_t>(out, answer.epoch);
  if (answer.verdict != Verdict::kWelcome) return out + std::string(kAnswerBytes - 8, '\0');
  out += answer.nonce;
  return out + Hmac(key, {"rempart acceptor", hello, out});
}

absl::Status CheckAnswer(absl::string_view answer, absl::string_view key, absl::string_view hello) {
  const auto epoch = static_cast<int32_t>(Get<uint32_t>(answer, 4));
  switch (static_cast<Verdict>(Get<uint32_t>(answer, 0))) {
    case Verdict::kWelcome:
      break;
    case Verdict::kOtherEpoch:
      return absl::FailedPreconditionError(absl::StrCat("it is in epoch ", epoch));
    case Verdict::kOtherGroup:
      return absl::FailedPreconditionError("it has other ranks in this epoch");
    case Verdict::kOtherEncryption:
      return absl::FailedPreconditionError("only one of the two encrypts the links");
    default:
      return absl::UnauthenticatedError("it does not answer as a rank does");
  }
  const absl::string_view head = answer.substr(0, kAnswerHead);
  if (!SameBytes(answer.substr(kAnswerHead), Hmac(key, {"rempart acceptor", hello, head}))) {
    return absl::UnauthenticatedError("it does not know the key of the epoch");
  }
  return absl::OkStatus();
}

std::string EncodeProof(absl::string_view key, absl::string_view hello, absl::string_view answer) {
  return Hmac(key, {"rempart dialler", hello, answer});
}

bool CheckProof(absl::string_view proof, absl::string_view key, absl::string_view hello,
                absl::string_view answer) {
  return SameBytes(proof, EncodeProof(key, hello, answer));
}

LinkSecrets DeriveSecrets(absl::string_view key, absl::string_view hello,
                          absl::string_view answer) {
  const std::string salt =
      absl::StrCat(hello.substr(kHelloBytes - kNonceBytes), answer.substr(8, kNonceBytes));
  const absl::string_view who = hello.substr(8, 12);  // epoch, ranks, size, flags
  return {Hkdf(key, salt, absl::StrCat("rempart from dialler", who), kSecretBytes),
          Hkdf(key, salt, absl::StrCat("rempart from acceptor", who), kSecretBytes)};
}

}  // namespace rempart::worker
