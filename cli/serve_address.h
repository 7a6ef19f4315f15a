// SPDX-License-Identifier: Apache-2.0
// Addresses that `rempart serve` listens on. Pure.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/serve.h"

namespace rempart::cli {

// "127.0.0.1:8000"; an IPv6 host in brackets: "[::1]:8000".
std::string HostAndPort(absl::string_view host, int port);

// InvalidArgument, naming the flags, when --host is no address, or one that --dev may not listen
// on.
absl::Status CheckHost(const ServeOptions& options);

// Where process `index`, counted from 0, called `name`, shows its metrics: the ports from --metrics
// on. InvalidArgument, naming the flags, where that is no port, or that of --port.
absl::StatusOr<std::string> MetricsAddress(const ServeOptions& options, size_t index,
                                           absl::string_view name);

}  // namespace rempart::cli
