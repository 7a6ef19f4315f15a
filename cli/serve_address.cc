// SPDX-License-Identifier: Apache-2.0
#include "cli/serve_address.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace rempart::cli {
namespace {

constexpr int kLastPort = 65535;

}  // namespace

std::string HostAndPort(absl::string_view host, int port) {
  const bool is_bare_v6 = absl::StrContains(host, ':') && !absl::StartsWith(host, "[");
  return is_bare_v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
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
