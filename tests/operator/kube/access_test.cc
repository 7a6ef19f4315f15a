// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/access.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"

namespace rempart::op {
namespace {

class AccessTest : public testing::Test {
 protected:
  std::string Write(const std::string& text) {
    path_ = std::filesystem::path(testing::TempDir()) / "kubeconfig-access-test";
    std::ofstream(path_) << text;
    return path_.string();
  }
  void TearDown() override {
    if (!path_.empty()) std::filesystem::remove(path_);
  }
  std::filesystem::path path_;
};

constexpr char kWhole[] = R"(
apiVersion: v1
kind: Config
current-context: second
contexts:
- {name: first, context: {cluster: wrong, user: wrong}}
- {name: second, context: {cluster: right, user: admin}}
clusters:
- {name: right, cluster: {server: "https://10.0.0.1:6443/", certificate-authority-data: SGVsbG8=}}
users:
- {name: admin, user: {token: secret}}
)";

TEST_F(AccessTest, TheCurrentContextCounts) {
  const auto access = AccessFromKubeconfig(Write(kWhole));
  ASSERT_TRUE(access.ok()) << access.status();
  EXPECT_EQ(access->server, "https://10.0.0.1:6443");
  EXPECT_EQ(access->authority.text, "Hello");
  EXPECT_EQ(access->token, "secret");
}

TEST_F(AccessTest, WhatIsMissingIsNamed) {
  const struct {
    const char* text;
    const char* word;
  } rows[] = {
      {"current-context: gone\ncontexts: []\n", "gone"},
      {"contexts: [\n", "kubeconfig"},
  };
  for (const auto& row : rows) {
    const auto access = AccessFromKubeconfig(Write(row.text));
    ASSERT_FALSE(access.ok()) << row.text;
    EXPECT_TRUE(absl::IsInvalidArgument(access.status())) << access.status();
    EXPECT_TRUE(absl::StrContains(std::string(access.status().message()), row.word))
        << access.status();
  }
  const auto access = AccessFromKubeconfig("/no/such/kubeconfig");
  EXPECT_TRUE(absl::StrContains(std::string(access.status().message()), "/no/such/kubeconfig"));
}

}  // namespace
}  // namespace rempart::op
