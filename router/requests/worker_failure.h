// SPDX-License-Identifier: Apache-2.0
// What clients are told when a request could not run or go on: the one place where the wire's
// failures become HTTP statuses.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "proto/worker/v1/worker.pb.h"
#include "router/api/request.h"

namespace rempart::router {

ApiError ToHttp(const worker::v1::Failure& failure);

ApiError ModelNotFound(absl::string_view served_name);
// 503 with Retry-After.
ApiError Unavailable(absl::string_view message, int32_t retry_after_seconds);
ApiError DeadlinePassed();
ApiError ServerError(absl::string_view message);

}  // namespace rempart::router
