// SPDX-License-Identifier: Apache-2.0
// Which addresses `rempart serve` listens on, and which flags it refuses.
#include "cli/serve_address.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/tls/tls.h"

namespace rempart::cli {
namespace {

TEST(ServeAddress, AnIPv6HostStandsInBrackets) {
  EXPECT_EQ(HostAndPort("127.0.0.1", 8000), "127.0.0.1:8000");
  EXPECT_EQ(HostAndPort("localhost", 8000), "localhost:8000");
  EXPECT_EQ(HostAndPort("::1", 8000), "[::1]:8000");
  EXPECT_EQ(HostAndPort("[::1]", 8000), "[::1]:8000");
  EXPECT_EQ(HostAndPort("fe80::1", 1), "[fe80::1]:1");
}

// So that --dev may listen there.
TEST(ServeAddress, BothLoopbacksStayOnThisMachine) {
  for (const char* host : {"127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"}) {
    EXPECT_TRUE(IsLocalAddress(HostAndPort(host, 8000))) << host;
  }
  for (const char* host : {"0.0.0.0", "::", "::2", "10.0.0.1", "::ffff:10.0.0.1"}) {
    EXPECT_FALSE(IsLocalAddress(HostAndPort(host, 8000))) << host;
  }
}

TEST(ServeAddress, AHostIsAnAddressAndStaysOnThisMachineWithoutKeys) {
  const auto refusal = [](const std::string& host, bool dev) {
    ServeOptions options;
    options.host = host;
    options.dev = dev;
    return std::string(CheckHost(options).message());
  };
  for (const char* host : {"127.0.0.1", "localhost", "::1", "[::1]"}) {
    EXPECT_EQ(refusal(host, true), "") << host;
    EXPECT_EQ(refusal(host, false), "") << host;
  }
  for (const char* host : {"0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0"}) {
    EXPECT_EQ(refusal(host, false), "") << host;
    EXPECT_EQ(refusal(host, true),
              absl::StrCat("--dev serves without API keys, and --host ", host,
                           " leaves this machine: give 127.0.0.1, or leave --dev out"));
  }
  for (const char* host : {"", "llm.example", "127.0.0.1:8000", "1.2.3", "[]"}) {
    EXPECT_EQ(refusal(host, false),
              absl::StrCat("--host \"", host,
                           "\": it must be an IP address of this machine, such as 127.0.0.1 or "
                           "0.0.0.0"));
  }
}

TEST(ServeAddress, MetricsFollowEachOtherAndLeaveTheServicesPortAlone) {
  ServeOptions options;
  options.port = 18002;
  options.metrics_port = 18000;
  EXPECT_EQ(*MetricsAddress(options, 0, "the router"), "127.0.0.1:18000");
  EXPECT_EQ(*MetricsAddress(options, 1, "ia/tiny-0"), "127.0.0.1:18001");
  const absl::Status taken = MetricsAddress(options, 2, "ia/tiny-1").status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(taken.message(),
            "--metrics 18000: the metrics of ia/tiny-1 would be on port 18002, which is that of "
            "--port: give another one");
  options.metrics_port = 65535;
  EXPECT_EQ(MetricsAddress(options, 1, "ia/tiny-0").status().message(),
            "--metrics 65535: there is no port for ia/tiny-0: give a lower one");
}

}  // namespace
}  // namespace rempart::cli
