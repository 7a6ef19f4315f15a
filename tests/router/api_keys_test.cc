// SPDX-License-Identifier: Apache-2.0
#include "router/auth/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace rempart::router {
namespace {

using ::testing::HasSubstr;
// SHA-256 of "abc" and of "" (FIPS 180-2).
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

TEST(ApiKeys, FindsTheNameOfAKey) {
  const auto keys = ParseApiKeys(absl::StrCat("# comment\n\n first:", kAbc, " # note\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 1u);
  EXPECT_EQ(FindKey(*keys, "abc"), "first");
  EXPECT_EQ(FindKey(*keys, "abd"), std::nullopt);
  EXPECT_EQ(FindKey(*keys, ""), std::nullopt);
}

TEST(ApiKeys, AnErrorNamesTheLine) {
  EXPECT_THAT(ParseApiKeys("\nfirst\n").status().message(), HasSubstr("line 2 must read"));
  EXPECT_THAT(ParseApiKeys("a:12").status().message(), HasSubstr("line 1 needs a SHA-256"));
  EXPECT_THAT(ParseApiKeys(absl::StrCat(":", kEmpty)).status().message(), HasSubstr("must read"));
}

TEST(ApiKeys, BearerHeaders) {
  EXPECT_EQ(BearerKey("Bearer abc"), "abc");
  EXPECT_EQ(BearerKey("bearer  abc "), "abc");
  EXPECT_EQ(BearerKey("Basic abc"), "");
  EXPECT_EQ(BearerKey(""), "");
}

TEST(ApiKeys, AFileThatBreaksLeavesTheLastGoodList) {
  const std::string path = absl::StrCat("/tmp/rempart_keys_", getpid());
  std::ofstream(path) << "first:" << kAbc << "\n";
  auto file = ApiKeyFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(FindKey(*(*file)->keys(), "abc"), "first");
  std::ofstream(path) << "second:" << kAbc << "\n";
  EXPECT_TRUE((*file)->Refresh().ok());
  EXPECT_EQ(FindKey(*(*file)->keys(), "abc"), "second");
  std::ofstream(path) << "broken\n";
  EXPECT_FALSE((*file)->Refresh().ok());
  EXPECT_EQ(FindKey(*(*file)->keys(), "abc"), "second");
  std::remove(path.c_str());
  EXPECT_FALSE((*file)->Refresh().ok());
  EXPECT_EQ(ApiKeyFile::Open(path).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace rempart::router
