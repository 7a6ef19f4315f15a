// SPDX-License-Identifier: Apache-2.0
#include "common/hash/sha256.h"

#include <gtest/gtest.h>

namespace rempart {
namespace {

// Messages and digests of FIPS 180-2, appendices B.1 to B.3.
TEST(Sha256, IsWhatTheStandardSays) {
  EXPECT_EQ(DigestText(HashOf({reinterpret_cast<const uint8_t*>("abc"), 3})),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256Hasher pieces;
  const std::string text(1000, 'a');
  for (int i = 0; i < 1000; ++i) pieces.Add(text.data(), text.size());
  EXPECT_EQ(DigestText(pieces.Finish()),
            "sha256:cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

}  // namespace
}  // namespace rempart
