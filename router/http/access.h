// SPDX-License-Identifier: Apache-2.0
// What handlers of one shard share, and the access log: one line per request, without any text of
// prompts or completions.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/clock.h"
#include "router/api/request.h"
#include "router/auth/api_keys.h"
#include "router/http/connection.h"
#include "router/http/http_message.h"
#include "router/http/metrics.h"
#include "router/requests/dispatcher.h"

namespace rempart::router {

// Outlives all connections of the shard.
struct ShardContext {
  Dispatcher* dispatcher = nullptr;
  const Clock* clock = nullptr;
  Metrics* metrics = nullptr;
  const ApiKeyFile* keys = nullptr;  // null: everyone may call (dev)
  std::atomic<bool>* stopping = nullptr;
  std::atomic<bool>* topology_known = nullptr;
};

struct AccessRecord {
  std::string method;
  std::string path;
  std::string route;  // one of ours, for metrics
  std::string request_id;
  std::string tenant;
  std::string served_name;
  int status = 0;
  absl::Time started;
  Usage usage;
};

AccessRecord BeginRecord(const ShardContext& shard, const HttpRequest& request);
// Writes the line and counts the request.
void EndRecord(const ShardContext& shard, const AccessRecord& record, bool client_left,
               uint64_t bytes_sent);

// Headers that every answer of ours has.
HttpReply ReplyFor(const AccessRecord& record, int status, std::string body);
HttpReply ErrorReply(const AccessRecord& record, const ApiError& error);

// A request that was answered at once.
class AnsweredExchange : public Exchange {
 public:
  AnsweredExchange(const ShardContext& shard, AccessRecord record)
      : shard_(shard), record_(std::move(record)) {}
  void OnEnd(bool client_left, uint64_t bytes_sent) override {
    EndRecord(shard_, record_, client_left, bytes_sent);
  }

 private:
  const ShardContext& shard_;
  const AccessRecord record_;
};

}  // namespace rempart::router
