// SPDX-License-Identifier: Apache-2.0
#include "cli/serve.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/child.h"
#include "cli/manifest.h"
#include "cli/run_folder.h"
#include "cli/serve_address.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/own_folder.h"
#include "common/signals.h"
#include "common/status_macros.h"
#include "operator/streams/join_registry.h"
#include "operator/streams/join_service.h"
#include "operator/streams/topology_service.h"
#include "proto/router/v1/config.pb.h"
#include "worker/device/cpu_count.h"

namespace rempart::cli {
namespace {

using op::WorkerPhase;
constexpr absl::Duration kLook = absl::Milliseconds(100);
// A process that was started this long ago and says nothing hangs.
constexpr absl::Duration kLongestHang = absl::Seconds(3);
constexpr absl::Duration kStopTime = absl::Seconds(15);
constexpr int32_t kRouterDrainMs = 8000;
constexpr char kRouterLog[] = "router.log";

template <typename... Args>
void Say(const Args&... args) {
  std::fprintf(stderr, "rempart: %s\n", absl::StrCat(args...).c_str());
}

int ExitCodeOf(const absl::Status& status) {
  const bool is_config = status.code() == absl::StatusCode::kInvalidArgument ||
                         status.code() == absl::StatusCode::kNotFound;
  return is_config ? kExitConfig : kExitRuntime;
}

absl::StatusOr<std::string> ToJson(const google::protobuf::Message& message) {
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json);
  if (status.ok()) return json;
  return absl::InternalError(std::string(status.message()));
}

// " (open 3 ms, repack 40 ms, total 120 ms)": what a worker's start spent its time on; parts
// overlap.
std::string StartText(const op::StartReport& start) {
  if (start.empty()) return "";
  return absl::StrCat(" (",
                      absl::StrJoin(start, ", ",
                                    [](std::string* out, const auto& part) {
                                      absl::StrAppend(out, part.first, " ", part.second, " ms");
                                    }),
                      ")");
}

// One worker group and what was last said about it.
struct Group {
  op::GroupPlan plan;
  std::string model_name;
  std::vector<std::string> served_names;
  std::vector<std::unique_ptr<Child>> pods;  // one process each, by pod index
  int32_t ended_epoch = 0;                   // the last whose end has been told
  // By pod index: when the process was started that was ended because it hung.
  std::map<int32_t, absl::Time> ended_starts;
  WorkerPhase phase = WorkerPhase::kUnknown;
  int64_t percent = -1;
  bool was_ready = false;
  absl::Time started;

  const std::string& name() const { return plan.config.group_name(); }
};

class Server {
 public:
  explicit Server(const ServeOptions& options)
      : options_(options),
        joins_(&clock_, [](const std::string&) { kill(getpid(), kNewsSignal); }),
        join_service_(&joins_, {}) {}
  ~Server() {
    if (control_ == nullptr) return;
    control_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Milliseconds(200)));
    control_->Wait();
  }

  absl::Status Prepare(const std::vector<op::Model>& models) {
    ASSIGN_OR_RETURN(std::vector<op::Plan> plans, PlanLocally(models));
    for (const op::Model& model : models) TellOfResources(model);
    RETURN_IF_ERROR(ChooseCacheFolder());
    ASSIGN_OR_RETURN(folder_, RunFolder::Create());
    RETURN_IF_ERROR(OpenControl());
    RETURN_IF_ERROR(PrepareRouter());
    for (size_t i = 0; i < plans.size(); ++i) {
      for (op::GroupPlan& plan : plans[i].groups) {
        RETURN_IF_ERROR(AddGroup(models[i], std::move(plan)));
      }
    }
    PublishTopology();
    return absl::OkStatus();
  }

  // Until a signal, or until something cannot be started at all.
  int Run() {
    int exit_code = StartAll();
    const sigset_t signals = EndSignals();
    sigset_t waking = signals;
    sigaddset(&waking, kNewsSignal);
    const timespec look = absl::ToTimespec(kLook);
    while (exit_code == kGoOn) {
      const int signal = sigtimedwait(&waking, nullptr, &look);
      if (signal > 0 && signal != kNewsSignal) {
        Say("stopping (press Ctrl-C again to stop at once)");
        exit_code = kExitOk;
      } else {
        exit_code = Look();
      }
    }
    StopAll(signals);
    return exit_code;
  }

 private:
  static constexpr int kGoOn = -1;

  absl::Status OpenControl() {
    const std::string address = absl::StrCat("unix:", folder_->Path("control.sock"));
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&join_service_);
    builder.RegisterService(&topology_service_);
    control_ = builder.BuildAndStart();
    if (control_ == nullptr) return absl::InternalError("cannot listen on " + address);
    return absl::OkStatus();
  }

  absl::Status AddGroup(const op::Model& model, op::GroupPlan plan) {
    const std::string number = absl::StrCat("worker-", groups_.size());
    plan.config.set_control_address(absl::StrCat("unix:", folder_->Path("control.sock")));
    plan.config.set_repack_cache_folder(cache_folder_);
    plan.config.mutable_engine()->set_kernel_tier(options_.kernel_tier);
    WarnOfThreads(plan.config);
    const int32_t pods = std::max(1, plan.pod_count);
    if (pods > 1) {
      plan.config.set_data_address("127.0.0.1:0");
      // The processes of a group share the processors; they would wait for each other otherwise.
      auto& engine = *plan.config.mutable_engine();
      if (engine.threads() == 0) engine.set_threads(std::max(1, worker::UsableCpuCount() / pods));
    }
    auto group = std::make_unique<Group>();
    for (int32_t pod = 0; pod < pods; ++pod) {
      // Processes of one machine see the same GPUs.
      if (plan.config.device() == "gpu") {
        plan.config.set_first_gpu(gpus_taken_);
        gpus_taken_ += plan.ranks_per_pod;
      }
      RETURN_IF_ERROR(
          AddPod(pod == 0 ? number : absl::StrCat(number, "-", pod), pod, plan.config, *group));
    }
    plan.config.set_listen_address(absl::StrCat("unix:", folder_->Path(number + ".sock")));
    group->model_name = op::FullName(model);
    group->served_names = op::ServedNames(model);
    group->plan = std::move(plan);
    groups_.push_back(std::move(group));
    return absl::OkStatus();
  }

  // The worker takes them down; its own warning is in a log that nobody may ever read.
  static void WarnOfThreads(const worker::v1::WorkerConfig& config) {
    const int32_t wanted = config.engine().threads();
    const int32_t used = worker::ThreadsFor(wanted);
    if (wanted <= used || config.device() == "gpu") return;
    Say(config.group_name(), ": engine.threads is ", wanted, ", but this process may use ", used,
        " CPUs: ", used, " threads compute");
  }

  static void TellOfResources(const op::Model& model) {
    if (!model.spec().has_resources()) return;
    Say(op::FullName(model),
        ": spec.resources counts on Kubernetes alone; here a model takes what the machine has, "
        "within engine.threads and engine.kvCacheMib");
  }

  // Workers would say it in a log of theirs. A folder that was not asked for may be missing.
  absl::Status ChooseCacheFolder() {
    cache_folder_ = options_.cache_folder;
    if (cache_folder_.empty()) return absl::OkStatus();
    const absl::Status usable = MakeWritableFolder("the repack cache", cache_folder_);
    if (usable.ok()) return usable;
    if (options_.cache_is_named) {
      return absl::InvalidArgumentError(absl::StrCat("--cache: ", usable.message()));
    }
    Say(usable.message(),
        "; each start repacks the weights. --cache DIR names another folder, --cache none says "
        "that none is wanted");
    cache_folder_.clear();
    return absl::OkStatus();
  }

  // Where a further process shows its metrics: one port after the other.
  absl::StatusOr<std::string> NextMetricsAddress(const std::string& name) {
    ASSIGN_OR_RETURN(std::string address, MetricsAddress(options_, metrics_.size(), name));
    metrics_.push_back({name, address});
    return address;
  }

  absl::Status AddPod(const std::string& file, int32_t pod, worker::v1::WorkerConfig config,
                      Group& group) {
    config.set_listen_address(absl::StrCat("unix:", folder_->Path(file + ".sock")));
    const std::string name =
        pod == 0 ? config.group_name() : absl::StrCat(config.group_name(), " pod ", pod);
    if (options_.metrics_port > 0) {
      ASSIGN_OR_RETURN(*config.mutable_health_address(), NextMetricsAddress(name));
    }
    ASSIGN_OR_RETURN(const std::string json, ToJson(config));
    RETURN_IF_ERROR(folder_->Write(file + ".json", json));
    group.pods.push_back(
        std::make_unique<Child>(name,
                                std::vector<std::string>{options_.binaries + "/rempart-worker",
                                                         "--config", folder_->Path(file + ".json")},
                                folder_->Path(file + ".log"),
                                std::vector<std::string>{absl::StrCat("REMPART_POD_INDEX=", pod),
                                                         absl::StrCat("REMPART_POD_NAME=", name)}));
    return absl::OkStatus();
  }

  absl::Status PrepareRouter() {
    router::v1::RouterConfig config;
    config.set_http_address(HostAndPort(options_.host, options_.port));
    std::string metrics = "off";
    if (options_.metrics_port > 0) {
      ASSIGN_OR_RETURN(metrics, NextMetricsAddress("the router"));
    }
    config.set_health_address(metrics);
    config.set_topology_address(absl::StrCat("unix:", folder_->Path("control.sock")));
    config.set_dev(options_.dev);
    config.set_router_id("local");
    config.mutable_limits()->set_drain_timeout_ms(kRouterDrainMs);
    if (!options_.api_keys_file.empty()) {
      config.set_api_keys_file(options_.api_keys_file);
    } else if (!options_.dev) {
      ASSIGN_OR_RETURN(const NewKey drawn, DrawKey("local"));
      RETURN_IF_ERROR(folder_->Write("keys", drawn.line));
      config.set_api_keys_file(folder_->Path("keys"));
      drawn_key_ = drawn.key;
    }
    ASSIGN_OR_RETURN(const std::string json, ToJson(config));
    RETURN_IF_ERROR(folder_->Write("router.json", json));
    router_ =
        std::make_unique<Child>("the router",
                                std::vector<std::string>{options_.binaries + "/rempart-router",
                                                         "--config", folder_->Path("router.json")},
                                folder_->Path(kRouterLog));
    return absl::OkStatus();
  }

  int StartAll() {
    begun_ = SteadyNow();
    std::vector<Child*> children{router_.get()};
    for (const auto& group : groups_) {
      for (const auto& pod : group->pods) children.push_back(pod.get());
    }
    for (Child* child : children) {
      if (const absl::Status started = child->Start(begun_); !started.ok()) {
        Say(started.message());
        return kExitRuntime;
      }
    }
    for (const auto& group : groups_) {
      group->started = begun_;
      Say(group->name(), ": loading ", group->plan.config.model_path());
    }
    return kGoOn;
  }

  int Look() {
    const absl::Time now = SteadyNow();
    if (const auto ending = router_->Poll(now)) {
      const int exit_code = Report(*router_, *ending, now - begun_ < absl::Seconds(10) && !told_);
      if (exit_code != kGoOn) return exit_code;
    }
    Revive(*router_, now);
    bool all_ready = true;
    for (const auto& group : groups_) {
      for (const auto& pod : group->pods) {
        if (const auto ending = pod->Poll(now)) {
          group->phase = WorkerPhase::kUnknown;
          const int exit_code = Report(*pod, *ending, !group->was_ready);
          if (exit_code != kGoOn) return exit_code;
        }
        if (Revive(*pod, now)) group->started = now;
      }
      ReportProgress(*group, now);
      all_ready = all_ready && group->phase == WorkerPhase::kReady;
    }
    PublishTopology();
    if (all_ready && !told_ && router_->running()) TellReady(now);
    return kGoOn;
  }

  // A process that cannot run as it was asked to ends everything; any other is started again. A GPU
  // that is not there does not come back by trying, however well it once served.
  int Report(const Child& child, const Child::Ending& ending, bool is_first) {
    const bool refuses =
        is_first && ending.exit_status >= kExitConfig && ending.exit_status <= kExitAddress;
    if (refuses || ending.exit_status == kExitDevice) {
      std::fputs(child.LastWords().c_str(), stderr);
      Say(child.name(), " could not start (", ending.words, ")");
      return ending.exit_status;
    }
    std::fputs(child.LastWords().c_str(), stderr);
    Say(child.name(), " ended with ", ending.words, "; starting it again in ",
        absl::FormatDuration(ending.pause));
    return kGoOn;
  }

  bool Revive(Child& child, absl::Time now) {
    if (!child.IsDue(now)) return false;
    const absl::Status started = child.Start(now);
    if (!started.ok()) Say(started.message());
    return started.ok();
  }

  // Tells once that an epoch is over, and ends the processes that hang: they are started again.
  void ReportEnding(Group& group, const op::GroupReport& report, absl::Time now) {
    if (report.last_ending.epoch > group.ended_epoch) {
      group.ended_epoch = report.last_ending.epoch;
      Say(group.name(), ": ", report.last_ending.reason, "; it forms again, requests wait");
      group.started = now;
    }
    for (const op::MemberReport& member : report.members) {
      if (static_cast<size_t>(member.pod_index) >= group.pods.size()) continue;
      Child& pod = *group.pods[static_cast<size_t>(member.pod_index)];
      const bool hangs = member.blamed && member.connected && member.silent_for > op::kSilence;
      if (!hangs || !pod.running() || now - pod.started() < kLongestHang) continue;
      if (std::exchange(group.ended_starts[member.pod_index], pod.started()) == pod.started()) {
        continue;
      }
      Say(pod.name(), " hangs: ending it");
      pod.Signal(SIGKILL);
    }
  }

  void ReportProgress(Group& group, absl::Time now) {
    if (!group.pods[0]->running()) return;
    const op::GroupReport report = joins_.Report(group.name());
    const op::WorkerProgress& said = report.progress;
    if (group.pods.size() > 1) ReportEnding(group, report, now);
    const absl::Duration elapsed = now - group.started;
    const std::string after = absl::StrFormat(" after %.1f s", absl::ToDoubleSeconds(elapsed));
    if (said.phase == WorkerPhase::kLoading && said.bytes_total > 0) {
      const int64_t percent = said.bytes_done * 100 / said.bytes_total;
      if (percent >= group.percent + 10) {
        group.percent = percent;
        Say(group.name(), ": ", percent, " % of ", said.bytes_total >> 20, " MiB", after);
      }
    }
    if (said.phase == group.phase) return;
    group.phase = said.phase;
    if (said.phase == WorkerPhase::kWarmingUp) Say(group.name(), ": warming up", after);
    if (said.phase != WorkerPhase::kReady) return;
    Say(group.name(), ": ready", after, StartText(report.start));
    group.was_ready = true;
    group.percent = -1;
  }

  void PublishTopology() {
    std::map<std::string, topology::v1::ModelEntry> models;
    for (const auto& group : groups_) {
      topology::v1::ModelEntry& model = models[group->model_name];
      model.set_model_name(group->model_name);
      model.clear_served_names();
      for (const std::string& name : group->served_names) model.add_served_names(name);
      model.set_created_unix_seconds(absl::ToUnixSeconds(begun_));
      model.set_context_length(group->plan.config.engine().context_length());
      topology::v1::GroupEntry& entry = *model.add_groups();
      entry.set_group_name(group->name());
      entry.set_address(group->plan.config.listen_address());
      entry.set_ready(group->phase == WorkerPhase::kReady);
      entry.set_epoch(joins_.Report(group->name()).epoch);
    }
    topology::v1::Snapshot snapshot;
    for (auto& [name, model] : models) *snapshot.add_models() = std::move(model);
    topology_service_.Publish(std::move(snapshot));
  }

  void TellReady(absl::Time now) {
    told_ = true;
    const std::string url =
        absl::StrCat("http://", HostAndPort(options_.host, options_.port), "/v1");
    Say("ready after ", absl::StrFormat("%.1f s", absl::ToDoubleSeconds(now - begun_)), ": ", url);
    const std::string header =
        options_.dev ? ""
                     : absl::StrCat(" -H 'Authorization: Bearer ",
                                    drawn_key_.empty() ? "YOUR_KEY" : drawn_key_, "'");
    if (!drawn_key_.empty()) Say("API key of this run (shown once): ", drawn_key_);
    for (const auto& [name, address] : metrics_) {
      Say("metrics of ", name, ": http://", address, "/metrics");
    }
    if (groups_.empty()) return;
    Say("try: curl ", url, "/chat/completions", header, " -d '{\"model\": \"",
        groups_[0]->served_names[0],
        "\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'");
  }

  void StopAll(const sigset_t& signals) {
    const absl::Time deadline = SteadyNow() + kStopTime;
    // The router first: it finishes what runs while the workers still serve.
    StopChild(*router_, deadline, signals);
    for (const auto& group : groups_) {
      for (const auto& pod : group->pods) pod->Signal(SIGTERM);
    }
    for (const auto& group : groups_) {
      for (const auto& pod : group->pods) StopChild(*pod, deadline, signals);
    }
  }

  void StopChild(Child& child, absl::Time deadline, const sigset_t& signals) {
    child.Signal(SIGTERM);
    const timespec look = absl::ToTimespec(kLook / 10);
    while (child.running()) {
      const absl::Time now = SteadyNow();
      if (child.Poll(now).has_value()) return;
      const bool at_once = sigtimedwait(&signals, nullptr, &look) > 0;
      if (at_once || now > deadline) child.Signal(SIGKILL);
    }
  }

  const ServeOptions& options_;
  SystemClock clock_;
  op::JoinRegistry joins_;
  op::JoinService join_service_;
  op::TopologyService topology_service_{""};
  std::string cache_folder_;
  std::unique_ptr<RunFolder> folder_;
  std::unique_ptr<grpc::Server> control_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::unique_ptr<Child> router_;
  int32_t gpus_taken_ = 0;
  std::vector<std::pair<std::string, std::string>> metrics_;  // who shows them, and where
  std::string drawn_key_;
  absl::Time begun_ = SteadyNow();
  bool told_ = false;
};

absl::StatusOr<std::vector<op::Model>> ReadInput(const ServeOptions& options) {
  RETURN_IF_ERROR(CheckHost(options));
  if (!options.api_keys_file.empty() && access(options.api_keys_file.c_str(), R_OK) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--api-keys ", options.api_keys_file, ": ", std::strerror(errno)));
  }
  return ReadManifests(options.manifest_path);
}

}  // namespace

int Serve(const ServeOptions& options) {
  SetLogLevel(LogLevel::kWarning);
  const absl::StatusOr<std::vector<op::Model>> models = ReadInput(options);
  // Not before: whoever waits for a manifest on standard input may end it. Blocked before any
  // thread starts, so that only this one sees them.
  BlockEndSignals(kNewsSignal);
  Server server(options);
  const absl::Status prepared = models.ok() ? server.Prepare(*models) : models.status();
  if (!prepared.ok()) {
    Say(prepared.message());
    return ExitCodeOf(prepared);
  }
  return server.Run();
}

}  // namespace rempart::cli
