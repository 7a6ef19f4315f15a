// SPDX-License-Identifier: Apache-2.0
// /healthz, /readyz and /metrics over HTTP for one process, and the client of the first two for the
// exec probes of a pod. One thread; a connection serves one request and closes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rempart {

struct HealthReply {
  int code = 200;
  std::string body;
};

struct HealthHandlers {
  std::function<HealthReply()> live;
  std::function<HealthReply()> ready;
  std::function<std::string()> metrics;
};

class HealthServer {
 public:
  // `address` is "127.0.0.1:port"; port 0 takes a free one. Unavailable when it is taken.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const std::string& address,
                                                             HealthHandlers handlers);
  ~HealthServer();
  int port() const;

 private:
  struct Listener;
  explicit HealthServer(std::unique_ptr<Listener> listener);

  std::unique_ptr<Listener> listener_;
  std::thread thread_;
};

// Asks a process on this machine; `what` is "ready" or "live". OK on 200, else what it said.
absl::Status Probe(const std::string& address, const std::string& what, absl::Duration timeout);

}  // namespace rempart
