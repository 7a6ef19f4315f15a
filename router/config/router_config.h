// SPDX-License-Identifier: Apache-2.0
// The configuration of a router process: proto/router/v1/config.proto as protobuf JSON, read into a
// plain struct that is valid afterwards. An unknown field is an error that names it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/tls/tls.h"

namespace rempart::router {

struct Limits {
  int64_t max_body_bytes = 8 << 20;
  int32_t max_header_bytes = 32 << 10;
  int32_t max_connections = 10'000;
  int32_t max_held_requests = 1000;
  absl::Duration held_timeout = absl::Seconds(60);
  absl::Duration request_read_timeout = absl::Seconds(30);
  absl::Duration idle_timeout = absl::Seconds(75);
  absl::Duration request_timeout = absl::Hours(1);
  absl::Duration write_timeout = absl::Seconds(30);
  int32_t max_unsent_bytes = 4 << 20;
  absl::Duration drain_timeout = absl::Seconds(50);
  absl::Duration drain_delay = absl::ZeroDuration();
};

struct RouterSettings {
  std::string http_address;
  std::string health_address = "127.0.0.1:9091";  // empty: nowhere
  std::string topology_address;
  std::string topology_file;
  TlsConfig topology_tls;
  TlsConfig worker_tls;
  std::string api_keys_file;
  bool dev = false;
  int32_t shards = 1;
  std::string router_id;
  Limits limits;
};

// InvalidArgument with all problems at once, each naming its field and what to do. `dev` is what
// the command line says; either may set it.
absl::StatusOr<RouterSettings> ParseRouterSettings(absl::string_view json, bool dev);
absl::StatusOr<RouterSettings> ReadRouterSettings(const std::string& path, bool dev);

}  // namespace rempart::router
