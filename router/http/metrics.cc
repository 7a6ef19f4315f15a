// SPDX-License-Identifier: Apache-2.0
#include "router/http/metrics.h"

#include <prometheus/text_serializer.h>

#include "absl/strings/str_cat.h"

namespace rempart::router {
namespace {

const prometheus::Histogram::BucketBoundaries kSeconds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                          1,     2.5,  5,     10,   30,  60,   300};

prometheus::Histogram& Histogram(prometheus::Registry& registry, const char* name,
                                 const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, kSeconds);
}

prometheus::Gauge& Gauge(prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

}  // namespace

Metrics::Metrics()
    : requests_(prometheus::BuildCounter()
                    .Name("rempart_router_requests_total")
                    .Help("Requests answered, by route and status")
                    .Register(registry_)),
      tokens_(prometheus::BuildCounter()
                  .Name("rempart_router_tokens_total")
                  .Help("Tokens of finished requests, by model and kind")
                  .Register(registry_)),
      first_token_seconds_(Histogram(registry_, "rempart_router_ttft_seconds",
                                     "From a request's last byte to its first token")),
      request_seconds_(Histogram(registry_, "rempart_router_request_seconds",
                                 "From a request's last byte to the answer's last")),
      clients_left_(prometheus::BuildCounter()
                        .Name("rempart_router_clients_left_total")
                        .Help("Requests cancelled because the client went away or did not read")
                        .Register(registry_)
                        .Add({})),
      connections_(Gauge(registry_, "rempart_router_connections", "Open client connections")),
      running_(Gauge(registry_, "rempart_router_requests_running", "Prompts that groups work on")),
      held_(Gauge(registry_, "rempart_router_requests_held", "Prompts that wait for a group")),
      groups_ready_(Gauge(registry_, "rempart_router_groups_ready",
                          "Groups that take requests, summed over shards")),
      moves_(Gauge(registry_, "rempart_router_request_moves",
                   "Prompts moved to another group since the start")),
      restarts_(Gauge(registry_, "rempart_router_restarts",
                      "Times that the process that serves was started anew after a crash")) {}

void Metrics::CountRequest(const std::string& route, int status) {
  requests_.Add({{"route", route}, {"status", absl::StrCat(status)}}).Increment();
}

void Metrics::CountTokens(const std::string& served_name, int64_t prompt, int64_t completion) {
  tokens_.Add({{"model", served_name}, {"kind", "prompt"}}).Increment(static_cast<double>(prompt));
  tokens_.Add({{"model", served_name}, {"kind", "completion"}})
      .Increment(static_cast<double>(completion));
}

void Metrics::ObserveFirstToken(absl::Duration elapsed) {
  first_token_seconds_.Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::ObserveRequest(absl::Duration elapsed) {
  request_seconds_.Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::SetRestarts(int restarts) { restarts_.Set(restarts); }

void Metrics::CountClientLeft() { clients_left_.Increment(); }

std::string Metrics::Text(const Levels& levels) {
  connections_.Set(static_cast<double>(levels.connections));
  running_.Set(static_cast<double>(levels.requests_running));
  held_.Set(static_cast<double>(levels.requests_held));
  groups_ready_.Set(static_cast<double>(levels.groups_ready));
  moves_.Set(static_cast<double>(levels.moves_total));
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace rempart::router
