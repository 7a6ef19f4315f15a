// SPDX-License-Identifier: Apache-2.0
#include "cli/serve_address.h"

#include <arpa/inet.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/tls/tls.h"

namespace rempart::cli {
namespace {

constexpr int kLastPort = 65535;

}  // namespace

std::string HostAndPort(absl::string_view host, int port) {
  const bool is_bare_v6 = absl::StrContains(host, ':') && !absl::StartsWith(host, "[");
  return is_bare_v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::Status CheckHost(const ServeOptions& options) {
  absl::string_view host = options.host;
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  const std::string address(host.substr(0, host.find('%')));  // without a v6 address's interface
  in6_addr parsed;
  if (address != "localhost" && inet_pton(AF_INET, address.c_str(), &parsed) != 1 &&
      inet_pton(AF_INET6, address.c_str(), &parsed) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--host \"", options.host,
                     "\": it must be an IP address of this machine, such as 127.0.0.1 or 0.0.0.0"));
  }
  if (!options.dev || IsLocalAddress(HostAndPort(options.host, options.port))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--dev serves without API keys, and --host ", options.host,
                   " leaves this machine: give 127.0.0.1, or leave --dev out"));
}

absl::StatusOr<std::string> MetricsAddress(const ServeOptions& options, size_t index,
                                           absl::string_view name) {
  const int port = options.metrics_port + static_cast<int>(index);
  if (port > kLastPort) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--metrics ", options.metrics_port, ": there is no port for ", name, ": give a lower one"));
  }
  if (port == options.port) {
    return absl::InvalidArgumentError(
        absl::StrCat("--metrics ", options.metrics_port, ": the metrics of ", name,
                     " would be on port ", port, ", which is that of --port: give another one"));
  }
  return HostAndPort("127.0.0.1", port);
}

}  // namespace rempart::cli
