// SPDX-License-Identifier: Apache-2.0
#include "router/endpoints/topology_feed.h"

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "proto/topology/v1/topology.grpc.pb.h"

namespace rempart::router {
namespace {

constexpr auto kFilePoll = std::chrono::milliseconds(500);
constexpr auto kFirstBackOff = std::chrono::milliseconds(100);
constexpr auto kMaxBackOff = std::chrono::milliseconds(5000);
constexpr auto kDemandPeriod = std::chrono::seconds(1);
constexpr int32_t kProtocol = 1;

// Returns early when asked to stop.
void SleepUnlessStopped(std::stop_token stop, std::chrono::milliseconds duration) {
  std::mutex mu;
  std::condition_variable_any wake;
  std::unique_lock<std::mutex> lock(mu);
  wake.wait_for(lock, stop, duration, [] { return false; });
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("topologyFile ", path, " cannot be read"));
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

topology::v1::FromRouter DemandMessage(const std::vector<ModelDemandFigures>& models) {
  topology::v1::FromRouter message;
  topology::v1::Demand* demand = message.mutable_demand();
  for (const ModelDemandFigures& figures : models) {
    topology::v1::ModelDemand* model = demand->add_models();
    model->set_model_name(figures.model_name);
    model->set_requests_held(figures.requests_held);
    model->set_requests_running(figures.requests_running);
    model->set_prompt_tokens_total(figures.prompt_tokens_total);
    model->set_completion_tokens_total(figures.completion_tokens_total);
  }
  return message;
}

}  // namespace

TopologyFeed::TopologyFeed(TopologyFeedOptions options, std::function<void(TopologyPtr)> publish,
                           std::function<std::vector<ModelDemandFigures>()> demand)
    : options_(std::move(options)),
      publish_(std::move(publish)),
      demand_(std::move(demand)),
      thread_([this](std::stop_token stop) {
        options_.file.empty() ? FollowStream(stop) : FollowFile(stop);
      }) {}

void TopologyFeed::FollowFile(std::stop_token stop) {
  std::string last;
  std::string last_problem;
  while (!stop.stop_requested()) {
    absl::StatusOr<std::string> text = ReadText(options_.file);
    if (text.ok() && *text != last) {
      last = *text;
      absl::StatusOr<Topology> topology = ParseTopology(last);
      if (topology.ok()) {
        publish_(std::make_shared<const Topology>(*std::move(topology)));
        last_problem.clear();
      } else {
        text = topology.status();
      }
    }
    if (!text.ok() && text.status().message() != last_problem) {
      last_problem = std::string(text.status().message());
      LogWarning("topology", "keeping the last copy", {{"reason", last_problem}});
    }
    SleepUnlessStopped(stop, kFilePoll);
  }
}

void TopologyFeed::FollowStream(std::stop_token stop) {
  auto back_off = kFirstBackOff;
  while (!stop.stop_requested()) {
    back_off = WatchOnce(stop) ? kFirstBackOff : std::min(back_off * 2, kMaxBackOff);
    SleepUnlessStopped(stop, back_off);
  }
}

bool TopologyFeed::WatchOnce(std::stop_token stop) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto channel = Dial(options_.tls, options_.address, arguments);
  if (!channel.ok()) {
    LogWarning("topology", "cannot dial", {{"reason", channel.status().message()}});
    return false;
  }
  const auto stub = topology::v1::Topology::NewStub(*channel);
  grpc::ClientContext context;
  const auto stream = stub->Watch(&context);
  std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  topology::v1::FromRouter hello;
  hello.mutable_hello()->set_router_id(options_.router_id);
  hello.mutable_hello()->set_protocol(kProtocol);
  stream->Write(hello);
  bool received = false;
  {
    // Writes go beside reads; ends with this block, before the stream does.
    std::jthread demand([&](std::stop_token done) {
      while (true) {
        SleepUnlessStopped(done, kDemandPeriod);
        if (done.stop_requested()) return;
        const auto figures = demand_();
        if (!figures.empty() && !stream->Write(DemandMessage(figures))) return;
      }
    });
    topology::v1::Snapshot snapshot;
    while (stream->Read(&snapshot)) {
      absl::StatusOr<Topology> topology = TopologyFrom(snapshot);
      if (!topology.ok()) {
        LogWarning("topology", "snapshot refused", {{"reason", topology.status().message()}});
        continue;
      }
      received = true;
      publish_(std::make_shared<const Topology>(*std::move(topology)));
    }
    context.TryCancel();
  }
  const grpc::Status status = stream->Finish();
  if (!stop.stop_requested()) {
    LogWarning("topology", "stream ended; keeping the last copy",
               {{"address", options_.address}, {"reason", status.error_message()}});
  }
  return received;
}

}  // namespace rempart::router
