// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/record_cipher.h"

#include <gtest/gtest.h>

#include "absl/strings/escaping.h"

namespace rempart::worker {
namespace {

const std::string kSecret(kKeyBytes + 12, 's');

std::vector<uint8_t> Seal(RecordCipher& cipher, std::string text) {
  auto* data = reinterpret_cast<uint8_t*>(text.data());
  const auto bytes = static_cast<int64_t>(text.size());
  const Piece pieces[] = {{data, bytes / 3}, {data + bytes / 3, bytes - bytes / 3}};
  std::vector<uint8_t> record(bytes + kRecordOverhead);
  cipher.Seal(pieces, bytes, record.data());
  return record;
}

bool Open(RecordCipher& cipher, const std::vector<uint8_t>& record, std::string& text) {
  text.resize(record.size() - kRecordOverhead);
  auto* data = reinterpret_cast<uint8_t*>(text.data());
  const Piece pieces[] = {{data, static_cast<int64_t>(text.size())}};
  return cipher.Open(record.data(), pieces, static_cast<int64_t>(text.size()));
}

TEST(RecordCipher, OpensWhatWasSealedInOrder) {
  RecordCipher seal(RecordCipher::Direction::kSeal, kSecret);
  RecordCipher open(RecordCipher::Direction::kOpen, kSecret);
  std::string text;
  for (const std::string said : {"", "a", "the same", "the same", "other"}) {
    const std::vector<uint8_t> record = Seal(seal, said);
    EXPECT_TRUE(Open(open, record, text));
    EXPECT_EQ(text, said);
  }
}

TEST(RecordCipher, RefusesARecordThatIsChangedRepeatedOrLeftOut) {
  std::string text;
  for (size_t victim = 0; victim < 8 + kRecordOverhead; ++victim) {
    RecordCipher seal(RecordCipher::Direction::kSeal, kSecret);
    RecordCipher open(RecordCipher::Direction::kOpen, kSecret);
    std::vector<uint8_t> record = Seal(seal, "activate");
    record[victim] ^= 1;
    EXPECT_FALSE(Open(open, record, text)) << victim;
  }
  RecordCipher seal(RecordCipher::Direction::kSeal, kSecret);
  RecordCipher open(RecordCipher::Direction::kOpen, kSecret);
  const std::vector<uint8_t> first = Seal(seal, "first");
  EXPECT_TRUE(Open(open, first, text));
  EXPECT_FALSE(Open(open, first, text));
  RecordCipher other(RecordCipher::Direction::kOpen, kSecret);
  EXPECT_FALSE(Open(other, Seal(seal, "second"), text));
}

TEST(RecordCipher, TheSamePlaintextLooksDifferentEachTime) {
  RecordCipher seal(RecordCipher::Direction::kSeal, kSecret);
  EXPECT_NE(Seal(seal, "activate"), Seal(seal, "activate"));
}

// RFC 5869, test case 1.
TEST(Hkdf, DerivesAsTheStandardSays) {
  const std::string okm =
      Hkdf(std::string(22, '\x0b'), absl::HexStringToBytes("000102030405060708090a0b0c"),
           absl::HexStringToBytes("f0f1f2f3f4f5f6f7f8f9"), 42);
  EXPECT_EQ(absl::BytesToHexString(okm),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
}

// RFC 4231, test case 2.
TEST(Hmac, IsThatOfTheStandard) {
  EXPECT_EQ(absl::BytesToHexString(Hmac("Jefe", {"what do ya want ", "for nothing?"})),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

}  // namespace
}  // namespace rempart::worker
