// SPDX-License-Identifier: Apache-2.0
#include "router/http/api_handler.h"

#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "router/api/openai/answer.h"
#include "router/api/openai/requests.h"
#include "router/http/generation.h"
#include "router/requests/worker_failure.h"

namespace rempart::router {
namespace {

constexpr char kModels[] = "/v1/models";

// Answered outside the API: not logged, not counted.
class UnrecordedExchange : public Exchange {
 public:
  void OnEnd(bool, uint64_t) override {}
};

std::unique_ptr<Exchange> Answer(const ShardContext& shard, Connection& connection,
                                 AccessRecord record, const HttpReply& reply) {
  record.status = reply.status;
  connection.Reply(reply);
  return std::make_unique<AnsweredExchange>(shard, std::move(record));
}

std::unique_ptr<Exchange> Refuse(const ShardContext& shard, Connection& connection,
                                 AccessRecord record, const ApiError& error) {
  const HttpReply reply = ErrorReply(record, error);
  return Answer(shard, connection, std::move(record), reply);
}

ApiError Error(int status, std::string code, std::string message) {
  ApiError error;
  error.status = status;
  error.code = std::move(code);
  error.message = std::move(message);
  return error;
}

// Sets the tenant, or says why not.
std::optional<ApiError> Authenticate(const ShardContext& shard, const HttpRequest& request,
                                     AccessRecord& record) {
  if (shard.keys == nullptr) return std::nullopt;
  const absl::string_view key = BearerKey(request.authorization);
  if (key.empty()) {
    return Error(401, "invalid_api_key",
                 "You did not provide an API key. Send it in the header 'Authorization: Bearer "
                 "YOUR_KEY'.");
  }
  const std::optional<std::string> name = FindKey(*shard.keys->keys(), key);
  if (!name) return Error(401, "invalid_api_key", "The API key provided is not known here.");
  record.tenant = *name;
  return std::nullopt;
}

std::string PercentDecoded(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '%' && i + 2 < text.size() &&
                        absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 1])) &&
                        absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 2]));
    if (escape) {
      out += absl::HexStringToBytes(text.substr(i + 1, 2));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

openai::ModelCard CardOf(const ModelEntry& model, const std::string& served_name) {
  return {served_name, model.created_unix_seconds, model.context_length};
}

std::unique_ptr<Exchange> AnswerModels(const ShardContext& shard, Connection& connection,
                                       const HttpRequest& request, AccessRecord record) {
  const TopologyPtr topology = shard.dispatcher->topology();
  if (request.path == kModels) {
    std::vector<openai::ModelCard> cards;
    for (const ModelEntry& model : topology->models) {
      for (const std::string& name : model.served_names) cards.push_back(CardOf(model, name));
    }
    const HttpReply reply = ReplyFor(record, 200, openai::ModelListBody(cards));
    return Answer(shard, connection, std::move(record), reply);
  }
  const std::string name = PercentDecoded(
      absl::StripPrefix(absl::string_view(request.path), absl::StrCat(kModels, "/")));
  const ModelEntry* model = topology->FindServed(name);
  if (model == nullptr) return Refuse(shard, connection, std::move(record), ModelNotFound(name));
  record.served_name = name;
  const HttpReply reply = ReplyFor(record, 200, openai::ModelBody(CardOf(*model, name)));
  return Answer(shard, connection, std::move(record), reply);
}

std::unique_ptr<Exchange> Generate(const ShardContext& shard, Connection& connection,
                                   HttpRequest request, AccessRecord record, openai::Route route) {
  if (!request.content_encoding.empty() && request.content_encoding != "identity") {
    return Refuse(
        shard, connection, std::move(record),
        Error(415, "unsupported_encoding",
              absl::StrCat("Content-Encoding '", absl::CHexEscape(request.content_encoding),
                           "' is not supported: send the body as it is.")));
  }
  auto read = route == openai::Route::kChat ? openai::ReadChatRequest(request.body)
                                            : openai::ReadCompletionRequest(request.body);
  if (const ApiError* error = std::get_if<ApiError>(&read)) {
    return Refuse(shard, connection, std::move(record), *error);
  }
  ApiRequest& api_request = std::get<ApiRequest>(read);
  if (shard.dispatcher->topology()->FindServed(api_request.served_name) == nullptr) {
    if (!shard.topology_known->load()) {
      return Refuse(shard, connection, std::move(record),
                    Unavailable("This server has just started and knows no models yet.", 1));
    }
    // Not recorded as a model: clients may make up any name.
    return Refuse(shard, connection, std::move(record), ModelNotFound(api_request.served_name));
  }
  record.served_name = api_request.served_name;
  auto generation = std::make_unique<Generation>(shard, connection, std::move(record), route,
                                                 std::move(api_request));
  generation->Submit();
  return generation;
}

std::unique_ptr<Exchange> Serve(const ShardContext& shard, Connection& connection,
                                HttpRequest request) {
  struct Known {
    absl::string_view method;
    absl::string_view route;
  };
  AccessRecord record = BeginRecord(shard, request);
  const bool is_models =
      request.path == kModels || absl::StartsWith(request.path, absl::StrCat(kModels, "/"));
  Known known;
  if (is_models) known = {"GET", "models"};
  if (request.path == "/v1/chat/completions") known = {"POST", "chat"};
  if (request.path == "/v1/completions") known = {"POST", "completions"};
  record.route = known.route.empty() ? "other" : std::string(known.route);
  if (auto error = Authenticate(shard, request, record)) {
    return Refuse(shard, connection, std::move(record), *error);
  }
  if (known.method.empty()) {
    return Refuse(shard, connection, std::move(record),
                  Error(404, "unknown_url",
                        absl::StrCat("Unknown request URL: ", request.method, " ", request.path)));
  }
  if (request.method != known.method) {
    HttpReply reply =
        ErrorReply(record, Error(405, "method_not_allowed",
                                 absl::StrCat("Use ", known.method, " for ", request.path, ".")));
    reply.headers.emplace_back("Allow", std::string(known.method));
    return Answer(shard, connection, std::move(record), reply);
  }
  if (is_models) return AnswerModels(shard, connection, request, std::move(record));
  const openai::Route route =
      known.route == "chat" ? openai::Route::kChat : openai::Route::kCompletions;
  return Generate(shard, connection, std::move(request), std::move(record), route);
}

// The reply to a probe, if the path is one.
std::optional<HttpReply> ProbeReply(const ShardContext& shard, const HttpRequest& request) {
  HttpReply reply;
  if (request.path == "/healthz") {
    reply.body = "{\"live\":true}\n";
    return reply;
  }
  if (request.path != "/readyz") return std::nullopt;
  const bool stopping = shard.stopping->load();
  const bool known = shard.topology_known->load();
  reply.status = known && !stopping ? 200 : 503;
  reply.body = stopping ? "{\"ready\":false,\"reason\":\"stopping\"}\n"
               : known  ? "{\"ready\":true}\n"
                        : "{\"ready\":false,\"reason\":\"no topology yet\"}\n";
  return reply;
}

}  // namespace

Handler ApiHandler(const ShardContext& shard) {
  return [&shard](HttpRequest request, Connection& connection) -> std::unique_ptr<Exchange> {
    if (const auto probe = ProbeReply(shard, request)) {
      connection.Reply(*probe);
      return std::make_unique<UnrecordedExchange>();
    }
    return Serve(shard, connection, std::move(request));
  };
}

Handler HealthHandler(const ShardContext& shard, std::function<std::string()> metrics_text) {
  return [&shard, metrics_text](HttpRequest request, Connection& connection) {
    HttpReply reply;
    if (const auto probe = ProbeReply(shard, request)) {
      reply = *probe;
    } else if (request.path == "/metrics") {
      reply.content_type = "text/plain; version=0.0.4";
      reply.body = metrics_text();
    } else {
      reply.status = 404;
      reply.body = "{\"error\":\"try /healthz, /readyz or /metrics\"}\n";
    }
    connection.Reply(reply);
    return std::make_unique<UnrecordedExchange>();
  };
}

}  // namespace rempart::router
