// SPDX-License-Identifier: Apache-2.0
#include "router/config/router_config.h"

#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "proto/router/v1/config.pb.h"

namespace rempart::router {
namespace {

using Problems = std::vector<std::string>;

// Takes over `value` unless it is 0, which means the default.
template <typename Int>
void TakeCount(absl::string_view field, int64_t value, Int& target, int64_t most,
               Problems& problems) {
  if (value < 0 || value > most) {
    problems.push_back(absl::StrCat(field, " is ", value, ": it must be from 0 to ", most));
  } else if (value != 0) {
    target = static_cast<Int>(value);
  }
}

void TakeTime(absl::string_view field, int32_t ms, absl::Duration& target, Problems& problems) {
  if (ms < 0) problems.push_back(absl::StrCat(field, " is ", ms, ": it must not be negative"));
  if (ms > 0) target = absl::Milliseconds(ms);
}

Limits LimitsFrom(const v1::Limits& config, Problems& problems) {
  Limits limits;
  TakeCount("limits.maxBodyBytes", config.max_body_bytes(), limits.max_body_bytes, 1 << 30,
            problems);
  TakeCount("limits.maxHeaderBytes", config.max_header_bytes(), limits.max_header_bytes, 1 << 20,
            problems);
  TakeCount("limits.maxConnections", config.max_connections(), limits.max_connections, 1'000'000,
            problems);
  TakeCount("limits.maxHeldRequests", config.max_held_requests(), limits.max_held_requests,
            1'000'000, problems);
  TakeCount("limits.maxUnsentBytes", config.max_unsent_bytes(), limits.max_unsent_bytes, 1 << 30,
            problems);
  TakeTime("limits.heldTimeoutMs", config.held_timeout_ms(), limits.held_timeout, problems);
  TakeTime("limits.requestReadTimeoutMs", config.request_read_timeout_ms(),
           limits.request_read_timeout, problems);
  TakeTime("limits.idleTimeoutMs", config.idle_timeout_ms(), limits.idle_timeout, problems);
  TakeTime("limits.requestTimeoutMs", config.request_timeout_ms(), limits.request_timeout,
           problems);
  TakeTime("limits.writeTimeoutMs", config.write_timeout_ms(), limits.write_timeout, problems);
  TakeTime("limits.drainTimeoutMs", config.drain_timeout_ms(), limits.drain_timeout, problems);
  TakeTime("limits.drainDelayMs", config.drain_delay_ms(), limits.drain_delay, problems);
  return limits;
}

TlsConfig TlsFrom(absl::string_view field, const v1::TlsFiles& files, Problems& problems) {
  TlsConfig tls{files.ca_file(), files.certificate_file(), files.key_file(), files.peer_name()};
  if (TlsIsConfigured(tls) &&
      (tls.ca_file.empty() || tls.certificate_file.empty() || tls.key_file.empty())) {
    problems.push_back(absl::StrCat(field, " needs all of caFile, certificateFile and keyFile"));
  }
  return tls;
}

void Check(const RouterSettings& settings, Problems& problems) {
  if (settings.http_address.empty()) {
    problems.push_back("httpAddress is missing: give one such as 0.0.0.0:8080");
  }
  if (settings.topology_address.empty() == settings.topology_file.empty()) {
    problems.push_back("exactly one of topologyAddress and topologyFile must be set");
  }
  if (settings.dev && !IsLocalAddress(settings.http_address)) {
    problems.push_back(absl::StrCat("dev mode serves without API keys, and httpAddress ",
                                    settings.http_address,
                                    " leaves this machine: listen on 127.0.0.1, or drop dev and "
                                    "set apiKeysFile"));
  }
  if (!settings.dev && settings.api_keys_file.empty()) {
    problems.push_back("apiKeysFile is missing: give one, or --dev on a loopback address");
  }
  if (!settings.topology_address.empty() && !TlsIsConfigured(settings.topology_tls) &&
      !IsLocalAddress(settings.topology_address)) {
    problems.push_back(absl::StrCat("topologyAddress is ", settings.topology_address,
                                    ", which leaves this machine: set topologyTls"));
  }
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "router";
}

}  // namespace

absl::StatusOr<RouterSettings> ParseRouterSettings(absl::string_view json, bool dev) {
  v1::RouterConfig config;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &config);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("router configuration: ", std::string(parsed.message())));
  }
  Problems problems;
  RouterSettings settings;
  settings.http_address = config.http_address();
  if (config.health_address() == "off") {
    settings.health_address.clear();
  } else if (!config.health_address().empty()) {
    settings.health_address = config.health_address();
  }
  settings.topology_address = config.topology_address();
  settings.topology_file = config.topology_file();
  settings.topology_tls = TlsFrom("topologyTls", config.topology_tls(), problems);
  settings.worker_tls = TlsFrom("workerTls", config.worker_tls(), problems);
  settings.api_keys_file = config.api_keys_file();
  settings.dev = dev || config.dev();
  TakeCount("shards", config.shards(), settings.shards, 256, problems);
  settings.router_id = config.router_id().empty() ? HostName() : config.router_id();
  settings.limits = LimitsFrom(config.limits(), problems);
  Check(settings, problems);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("router configuration: ", absl::StrJoin(problems, "; ")));
  }
  return settings;
}

absl::StatusOr<RouterSettings> ReadRouterSettings(const std::string& path, bool dev) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat("--config ", path, ": ", std::strerror(errno)));
  }
  std::ostringstream content;
  content << file.rdbuf();
  return ParseRouterSettings(content.str(), dev);
}

}  // namespace rempart::router
