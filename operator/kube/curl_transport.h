// SPDX-License-Identifier: Apache-2.0
// Transport over libcurl: HTTP/1.1 with keep-alive and TLS. Any thread; a request takes a handle
// (with its open connection) from a pool, a stream has a handle of its own.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "operator/kube/access.h"
#include "operator/kube/transport.h"

namespace rempart::op {

class CurlTransport : public Transport {
 public:
  explicit CurlTransport(ClusterAccess access);
  ~CurlTransport() override;

  absl::StatusOr<HttpResponse> Send(const HttpRequest& request) override;
  absl::StatusOr<HttpResponse> Stream(const HttpRequest& request,
                                      const std::function<bool(absl::string_view)>& on_line,
                                      std::stop_token stop) override;

 private:
  struct Handle;
  struct StreamState;

  std::unique_ptr<Handle> Take();
  void Return(std::unique_ptr<Handle> handle);
  // Everything that Send and Stream have in common.
  void Prepare(const HttpRequest& request, Handle& handle) const;

  const ClusterAccess access_;
  Mutex mu_;
  std::vector<std::unique_ptr<Handle>> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
