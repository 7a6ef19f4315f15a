// SPDX-License-Identifier: Apache-2.0
#include "router/http/access.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/api/openai/answer.h"

namespace rempart::router {
namespace {

// nginx's word for a client that went away before the answer.
constexpr int kClientLeft = 499;

}  // namespace

AccessRecord BeginRecord(const ShardContext& shard, const HttpRequest& request) {
  AccessRecord record;
  record.method = request.method;
  record.path = request.path;
  record.route = "other";
  record.request_id = request.request_id;
  record.started = shard.clock->Now();
  return record;
}

void EndRecord(const ShardContext& shard, const AccessRecord& record, bool client_left,
               uint64_t bytes_sent) {
  const absl::Duration elapsed = shard.clock->Now() - record.started;
  const int status = client_left ? kClientLeft : record.status;
  shard.metrics->CountRequest(record.route, status);
  if (client_left) shard.metrics->CountClientLeft();
  LogInfo("access", "request",
          {{"method", record.method},
           {"path", record.path},
           {"status", status},
           {"model", record.served_name},
           {"tenant", record.tenant},
           {"ms", absl::ToInt64Milliseconds(elapsed)},
           {"prompt_tokens", record.usage.prompt_tokens},
           {"completion_tokens", record.usage.completion_tokens},
           {"bytes", bytes_sent},
           {"request_id", record.request_id}});
}

HttpReply ReplyFor(const AccessRecord& record, int status, std::string body) {
  HttpReply reply;
  reply.status = status;
  reply.body = std::move(body);
  reply.headers.emplace_back("x-request-id", record.request_id);
  return reply;
}

HttpReply ErrorReply(const AccessRecord& record, const ApiError& error) {
  HttpReply reply = ReplyFor(record, error.status, openai::ErrorBody(error));
  if (error.retry_after_seconds > 0) {
    reply.headers.emplace_back("retry-after", absl::StrCat(error.retry_after_seconds));
    reply.headers.emplace_back("retry-after-ms", absl::StrCat(error.retry_after_seconds * 1000));
  }
  if (error.status == 401) reply.headers.emplace_back("www-authenticate", "Bearer");
  return reply;
}

}  // namespace rempart::router
