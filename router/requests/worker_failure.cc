// SPDX-License-Identifier: Apache-2.0
#include "router/requests/worker_failure.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace rempart::router {
namespace {

// The worker names fields of Start; clients know them without the group they are in.
std::string ParamOf(absl::string_view field) {
  absl::ConsumePrefix(&field, "sampling.");
  absl::ConsumePrefix(&field, "chat.");
  return std::string(field == "chat" ? "messages" : field);
}

}  // namespace

ApiError ToHttp(const worker::v1::Failure& failure) {
  ApiError error;
  error.message = failure.message();
  error.param = ParamOf(failure.field());
  switch (failure.code()) {
    case worker::v1::Failure::INVALID_ARGUMENT:
      error.status = 400;
      error.code = "invalid_value";
      return error;
    case worker::v1::Failure::CONTEXT_OVERFLOW:
      error.status = 400;
      error.code = "context_length_exceeded";
      return error;
    case worker::v1::Failure::OVERLOADED:
    case worker::v1::Failure::DRAINING:
      return Unavailable(failure.message(), 1);
    default:
      return ServerError(failure.message());
  }
}

ApiError ModelNotFound(absl::string_view served_name) {
  ApiError error;
  error.status = 404;
  error.message = absl::StrCat("The model '", served_name,
                               "' does not exist. GET /v1/models lists those that do.");
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

ApiError Unavailable(absl::string_view message, int32_t retry_after_seconds) {
  ApiError error;
  error.status = 503;
  error.type = "server_error";
  error.code = "service_unavailable";
  error.message = std::string(message);
  error.retry_after_seconds = retry_after_seconds;
  return error;
}

ApiError DeadlinePassed() {
  ApiError error;
  error.status = 504;
  error.type = "server_error";
  error.code = "request_timeout";
  error.message = "The request took longer than this server allows and was stopped.";
  return error;
}

ApiError ServerError(absl::string_view message) {
  ApiError error;
  error.status = 500;
  error.type = "server_error";
  error.code = "internal_error";
  error.message = std::string(message);
  return error;
}

}  // namespace rempart::router
