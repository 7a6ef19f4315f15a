// SPDX-License-Identifier: Apache-2.0
// A shard is a whole router: one thread with its listener, its stream to every group and its own
// copy of what is known. Shards share nothing but immutable snapshots and counters.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/mutex.h"
#include "router/config/router_config.h"
#include "router/http/access.h"
#include "router/http/listener.h"

namespace rempart::router {

// What a shard says of itself, as of its last tick.
struct ShardFigures {
  Metrics::Levels levels;
  std::map<std::string, ModelDemandFigures> demand;
};

// What all shards of a process share. Outlives them.
struct ProcessContext {
  const RouterSettings* settings = nullptr;
  const Clock* clock = nullptr;
  Metrics* metrics = nullptr;
  const ApiKeyFile* keys = nullptr;
  std::atomic<bool>* stopping = nullptr;
  // The process before this one crashed.
  bool restarted = false;
};

class Shard {
 public:
  Shard(const ProcessContext& process, int32_t index);
  ~Shard();

  // Before Start: what to listen on. The first is the clients' address.
  boost::asio::io_context& io_context() { return io_context_; }
  void Serve(boost::asio::ip::tcp::acceptor acceptor);
  void ServeHealth(boost::asio::ip::tcp::acceptor acceptor, std::function<std::string()> metrics);
  void Start();

  // Any thread.
  void SetTopology(TopologyPtr topology);
  ShardFigures figures() const;
  // Takes connections for another `drain_delay`, one answer each, and finishes what runs, until
  // `drain_timeout`; then Join returns.
  void Stop();
  void Join();

 private:
  void Tick();
  void ServeClients();
  void Drain();
  void CloseAll();
  void PublishFigures();

  const ProcessContext& process_;
  boost::asio::io_context io_context_{1};
  std::atomic<bool> topology_known_ = false;

  // Owned by the shard's thread once it runs.
  boost::asio::steady_timer tick_;
  Dispatcher dispatcher_;
  ShardContext context_;
  std::vector<std::unique_ptr<Listener>> listeners_;  // clients' first, then health
  bool serves_clients_ = false;
  absl::Time serve_without_topology_at_ = absl::InfinitePast();
  absl::Time accept_until_ = absl::InfiniteFuture();
  absl::Time drain_deadline_ = absl::InfiniteFuture();
  bool closed_ = false;

  mutable Mutex mu_;
  ShardFigures figures_ ABSL_GUARDED_BY(mu_);

  std::jthread thread_;
};

}  // namespace rempart::router
