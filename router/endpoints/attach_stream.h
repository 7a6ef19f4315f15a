// SPDX-License-Identifier: Apache-2.0
// The router's end of one Attach stream. Owned and called by the thread of one shard; what comes
// from gRPC's threads is posted to that thread.
// 1. The next frame is read when the last one has been handled: a shard that falls behind lets the
//    worker merge its steps instead of queueing frames.
// 2. on_closed comes exactly once, unless Close was called first; nothing comes after either.
// 3. An open stream keeps its io_context running.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/tls/tls.h"
#include "proto/worker/v1/worker.pb.h"

namespace rempart::router {

struct AttachEvents {
  std::function<void(const worker::v1::FromWorker&)> on_frame;
  std::function<void(absl::Status)> on_closed;
};

class AttachReactor;

class AttachStream {
 public:
  // Says hello; connects in the background.
  AttachStream(boost::asio::io_context& shard, const TlsConfig& tls, const std::string& address,
               const std::string& router_id, AttachEvents events);
  ~AttachStream() { Close(); }

  void Send(worker::v1::ToWorker message);
  void Close();

 private:
  std::shared_ptr<AttachReactor> reactor_;  // null after Close
};

}  // namespace rempart::router
