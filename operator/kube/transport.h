// SPDX-License-Identifier: Apache-2.0
// The one seam between the Kubernetes client and the network: an HTTP request out, an answer or a
// stream of lines back. Implemented over libcurl; any thread may call, many at once.
#pragma once

#include <functional>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rempart::op {

struct HttpRequest {
  std::string method = "GET";
  std::string path;               // "/api/v1/pods?limit=500"
  std::string content_type = {};  // of the body; empty without one
  std::string body = {};
  absl::Duration timeout = absl::Seconds(30);
};

struct HttpResponse {
  int code = 0;
  std::string body;
};

class Transport {
 public:
  virtual ~Transport() = default;

  // Any HTTP answer is OK here, whatever its code. Unavailable: no answer.
  virtual absl::StatusOr<HttpResponse> Send(const HttpRequest& request) = 0;

  // Calls `on_line` for each line of a 200 answer as it arrives, until the server ends the answer
  // (the code and, unless it is 200, the body are returned), `on_line` returns false, or a stop is
  // asked for (both: 200). Unavailable: the connection broke.
  virtual absl::StatusOr<HttpResponse> Stream(
      const HttpRequest& request, const std::function<bool(absl::string_view line)>& on_line,
      std::stop_token stop) = 0;
};

}  // namespace rempart::op
