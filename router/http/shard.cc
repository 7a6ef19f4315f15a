// SPDX-License-Identifier: Apache-2.0
#include "router/http/shard.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/http/api_handler.h"

namespace rempart::router {
namespace {

constexpr auto kTick = std::chrono::milliseconds(50);
constexpr int32_t kMaxHealthConnections = 64;
// After a crash, clients wait for the models to be known rather than being refused.
constexpr absl::Duration kTopologyWait = absl::Seconds(5);

DispatcherOptions OptionsOf(const RouterSettings& settings, int32_t index) {
  DispatcherOptions options;
  options.router_id = absl::StrCat(settings.router_id, "/", index);
  options.worker_tls = settings.worker_tls;
  options.max_held = std::max(1, settings.limits.max_held_requests / settings.shards);
  options.held_timeout = settings.limits.held_timeout;
  options.request_timeout = settings.limits.request_timeout;
  return options;
}

ConnectionOptions OptionsOf(const Limits& limits) {
  ConnectionOptions options;
  options.limits.max_header_bytes = static_cast<uint32_t>(limits.max_header_bytes);
  options.limits.max_body_bytes = static_cast<uint64_t>(limits.max_body_bytes);
  options.request_read_timeout = limits.request_read_timeout;
  options.idle_timeout = limits.idle_timeout;
  options.write_timeout = limits.write_timeout;
  options.max_unsent_bytes = static_cast<size_t>(limits.max_unsent_bytes);
  return options;
}

}  // namespace

Shard::Shard(const ProcessContext& process, int32_t index)
    : process_(process),
      tick_(io_context_),
      dispatcher_(io_context_, OptionsOf(*process.settings, index), process.clock),
      context_{&dispatcher_, process.clock,    process.metrics,
               process.keys, process.stopping, &topology_known_} {}

Shard::~Shard() {
  if (!thread_.joinable()) return;
  boost::asio::post(io_context_, [this] { CloseAll(); });
  thread_.join();
}

void Shard::Serve(boost::asio::ip::tcp::acceptor acceptor) {
  const Limits& limits = process_.settings->limits;
  listeners_.push_back(std::make_unique<Listener>(
      io_context_, std::move(acceptor), OptionsOf(limits),
      std::max(1, limits.max_connections / process_.settings->shards), ApiHandler(context_)));
}

void Shard::ServeHealth(boost::asio::ip::tcp::acceptor acceptor,
                        std::function<std::string()> metrics) {
  listeners_.push_back(std::make_unique<Listener>(
      io_context_, std::move(acceptor), OptionsOf(process_.settings->limits), kMaxHealthConnections,
      HealthHandler(context_, std::move(metrics))));
}

void Shard::Start() {
  thread_ = std::jthread([this] {
    for (size_t i = 1; i < listeners_.size(); ++i) listeners_[i]->Run();
    if (process_.restarted) serve_without_topology_at_ = process_.clock->Now() + kTopologyWait;
    Tick();
    io_context_.run();
  });
}

void Shard::SetTopology(TopologyPtr topology) {
  boost::asio::post(io_context_, [this, topology = std::move(topology)] {
    if (closed_) return;
    dispatcher_.SetTopology(topology);
    topology_known_ = true;
    ServeClients();
  });
}

void Shard::ServeClients() {
  if (std::exchange(serves_clients_, true)) return;
  if (!listeners_.empty()) listeners_.front()->Run();
}

void Shard::Tick() {
  if (closed_) return;
  if (process_.clock->Now() >= serve_without_topology_at_) ServeClients();
  dispatcher_.Tick();
  PublishFigures();
  if (drain_deadline_ != absl::InfiniteFuture()) Drain();
  if (closed_) return;
  tick_.expires_after(kTick);
  tick_.async_wait([this](boost::system::error_code error) {
    if (!error) Tick();
  });
}

void Shard::PublishFigures() {
  ShardFigures figures;
  for (const auto& listener : listeners_) {
    figures.levels.connections += listener->connection_count();
  }
  figures.levels.requests_held = dispatcher_.held_count();
  figures.levels.requests_running = dispatcher_.ticket_count() - dispatcher_.held_count();
  figures.levels.groups_ready = dispatcher_.endpoints().ready_count();
  figures.levels.moves_total = dispatcher_.moves_total();
  dispatcher_.AddDemand(figures.demand);
  MutexLock lock(&mu_);
  figures_ = std::move(figures);
}

ShardFigures Shard::figures() const {
  MutexLock lock(&mu_);
  return figures_;
}

void Shard::Stop() {
  boost::asio::post(io_context_, [this] {
    if (closed_ || drain_deadline_ != absl::InfiniteFuture()) return;
    const Limits& limits = process_.settings->limits;
    accept_until_ = process_.clock->Now() + limits.drain_delay;
    drain_deadline_ = process_.clock->Now() + limits.drain_timeout;
    if (!listeners_.empty()) listeners_.front()->KeepNone();
    Drain();
  });
}

void Shard::Drain() {
  if (process_.clock->Now() < std::min(accept_until_, drain_deadline_)) return;
  if (!listeners_.empty()) listeners_.front()->Stop();
  const int32_t open = listeners_.empty() ? 0 : listeners_.front()->connection_count();
  if (open > 0 && process_.clock->Now() < drain_deadline_) return;
  if (open > 0) LogWarning("http", "cutting off what is left", {{"connections", open}});
  CloseAll();
}

void Shard::CloseAll() {
  if (std::exchange(closed_, true)) return;
  tick_.cancel();
  dispatcher_.Close();
  for (const auto& listener : listeners_) listener->Abort();
}

void Shard::Join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace rempart::router
