// SPDX-License-Identifier: Apache-2.0
#include "router/config/router_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rempart::router {
namespace {

using ::testing::HasSubstr;

std::string Refusal(absl::string_view json, bool dev = false) {
  const auto settings = ParseRouterSettings(json, dev);
  return settings.ok() ? "accepted" : std::string(settings.status().message());
}

TEST(RouterConfig, DefaultsBesideWhatIsGiven) {
  const auto settings = ParseRouterSettings(
      R"({"httpAddress":"0.0.0.0:8080","topologyFile":"t.json","apiKeysFile":"keys",
          "limits":{"heldTimeoutMs":1500}})",
      false);
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->health_address, "127.0.0.1:9091");
  EXPECT_EQ(settings->shards, 1);
  EXPECT_EQ(settings->limits.held_timeout, absl::Milliseconds(1500));
  EXPECT_EQ(settings->limits.max_body_bytes, 8 << 20);
  EXPECT_FALSE(settings->router_id.empty());
}

TEST(RouterConfig, RefusesWithTheFieldAndTheFix) {
  EXPECT_THAT(Refusal(R"({"httpAdress":"x"})"), HasSubstr("httpAdress"));
  EXPECT_THAT(Refusal("{}"), HasSubstr("httpAddress is missing"));
  EXPECT_THAT(Refusal("{}"), HasSubstr("exactly one of topologyAddress and topologyFile"));
  EXPECT_THAT(Refusal("{}"), HasSubstr("apiKeysFile is missing"));
  EXPECT_THAT(Refusal(R"({"limits":{"maxHeaderBytes":-1}})"),
              HasSubstr("limits.maxHeaderBytes is -1"));
  EXPECT_THAT(Refusal(R"({"topologyAddress":"operator:7080"})"), HasSubstr("set topologyTls"));
  EXPECT_THAT(Refusal(R"({"workerTls":{"caFile":"ca"}})"), HasSubstr("workerTls needs all of"));
}

TEST(RouterConfig, DevModeOnlyOnLoopback) {
  const char* everywhere = R"({"httpAddress":"0.0.0.0:8080","topologyFile":"t.json"})";
  const char* here = R"({"httpAddress":"127.0.0.1:8080","topologyFile":"t.json"})";
  EXPECT_THAT(Refusal(everywhere, true), HasSubstr("leaves this machine"));
  EXPECT_EQ(Refusal(here, true), "accepted");
  EXPECT_THAT(Refusal(here, false), HasSubstr("apiKeysFile is missing"));
}

}  // namespace
}  // namespace rempart::router
