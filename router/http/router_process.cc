// SPDX-License-Identifier: Apache-2.0
#include "router/http/router_process.h"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "router/http/listening_sockets.h"

namespace rempart::router {
namespace {

using Tcp = boost::asio::ip::tcp;
constexpr auto kKeyReload = std::chrono::milliseconds(1000);

}  // namespace

RouterProcess::RouterProcess(RouterSettings settings, const Clock* clock, Inheritance inheritance)
    : settings_(std::move(settings)), inheritance_(std::move(inheritance)) {
  context_ = {&settings_, clock, &metrics_, nullptr, &stopping_, inheritance_.restarts > 0};
  metrics_.SetRestarts(inheritance_.restarts);
}

RouterProcess::~RouterProcess() {
  feed_.reset();
  key_reload_ = {};
  shards_.clear();
}

absl::StatusOr<std::unique_ptr<RouterProcess>> RouterProcess::Start(RouterSettings settings,
                                                                    const Clock* clock,
                                                                    Inheritance inheritance) {
  std::unique_ptr<RouterProcess> process(
      new RouterProcess(std::move(settings), clock, std::move(inheritance)));
  RETURN_IF_ERROR(process->Open());
  return process;
}

absl::Status RouterProcess::Open() {
  // In dev mode a key file is not needed, but what is given counts.
  if (!settings_.api_keys_file.empty()) {
    ASSIGN_OR_RETURN(keys_, ApiKeyFile::Open(settings_.api_keys_file));
    context_.keys = keys_.get();
  }
  RETURN_IF_ERROR(OpenShards());
  for (const auto& shard : shards_) shard->Start();
  if (keys_ != nullptr) {
    key_reload_ = std::jthread([this](std::stop_token stop) { ReloadKeys(stop); });
  }
  TopologyFeedOptions options{settings_.topology_file, settings_.topology_address,
                              settings_.topology_tls, settings_.router_id};
  feed_ = std::make_unique<TopologyFeed>(
      std::move(options),
      [this](const TopologyPtr& topology) {
        for (const auto& shard : shards_) shard->SetTopology(topology);
      },
      [this] { return Demand(); });
  return absl::OkStatus();
}

absl::Status RouterProcess::OpenShards() {
  std::vector<int> sockets = inheritance_.listeners;
  if (sockets.empty()) {
    ASSIGN_OR_RETURN(sockets, OpenListeningSockets(settings_));
  }
  const bool has_health = !settings_.health_address.empty();
  if (sockets.size() != static_cast<size_t>(settings_.shards) + has_health) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listeners has ", sockets.size(), " descriptors, not one for each of ",
                     settings_.shards, " shards", has_health ? " and one for health" : ""));
  }
  for (int32_t index = 0; index < settings_.shards; ++index) {
    auto shard = std::make_unique<Shard>(context_, index);
    ASSIGN_OR_RETURN(Tcp::acceptor acceptor, AcceptorOf(shard->io_context(), sockets[index]));
    port_ = acceptor.local_endpoint().port();
    shard->Serve(std::move(acceptor));
    shards_.push_back(std::move(shard));
  }
  if (!has_health) return absl::OkStatus();
  ASSIGN_OR_RETURN(Tcp::acceptor acceptor, AcceptorOf(shards_[0]->io_context(), sockets.back()));
  health_port_ = acceptor.local_endpoint().port();
  shards_[0]->ServeHealth(std::move(acceptor), [this] { return MetricsText(); });
  return absl::OkStatus();
}

void RouterProcess::ReloadKeys(std::stop_token stop) {
  std::mutex mu;
  std::condition_variable_any wake;
  std::string last_problem;
  while (!stop.stop_requested()) {
    const absl::Status status = keys_->Refresh();
    if (!status.ok() && status.message() != last_problem) {
      LogWarning("auth", "keeping the last API keys", {{"reason", status.message()}});
    }
    last_problem = std::string(status.message());
    std::unique_lock<std::mutex> lock(mu);
    wake.wait_for(lock, stop, kKeyReload, [] { return false; });
  }
}

std::vector<ModelDemandFigures> RouterProcess::Demand() {
  std::map<std::string, ModelDemandFigures> sums;
  for (const auto& shard : shards_) {
    for (const auto& [name, figures] : shard->figures().demand) {
      ModelDemandFigures& sum = sums[name];
      sum.model_name = name;
      sum.requests_held += figures.requests_held;
      sum.requests_running += figures.requests_running;
      sum.prompt_tokens_total += figures.prompt_tokens_total;
      sum.completion_tokens_total += figures.completion_tokens_total;
    }
  }
  std::vector<ModelDemandFigures> demand;
  for (auto& [name, figures] : sums) demand.push_back(std::move(figures));
  return demand;
}

std::string RouterProcess::MetricsText() {
  Metrics::Levels sum;
  for (const auto& shard : shards_) {
    const Metrics::Levels levels = shard->figures().levels;
    sum.connections += levels.connections;
    sum.requests_running += levels.requests_running;
    sum.requests_held += levels.requests_held;
    sum.groups_ready += levels.groups_ready;
    sum.moves_total += levels.moves_total;
  }
  return metrics_.Text(sum);
}

void RouterProcess::Stop() {
  stopping_ = true;
  for (const auto& shard : shards_) shard->Stop();
  for (const auto& shard : shards_) shard->Join();
}

}  // namespace rempart::router
