// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/operator_process.h"

#include <malloc.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/health/health_server.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/tls/tls.h"
#include "operator/kube/controller.h"
#include "operator/kube/leader.h"
#include "operator/kube/wait.h"
#include "operator/reconcile/execute.h"
#include "operator/reconcile/members.h"
#include "operator/reconcile/metrics.h"
#include "operator/reconcile/observe.h"
#include "operator/reconcile/topology.h"
#include "operator/reconcile/triggers.h"
#include "operator/streams/join_service.h"
#include "operator/streams/topology_service.h"

namespace rempart::op {
namespace {

constexpr char kVersion[] = REMPART_VERSION;
constexpr absl::Duration kLook = absl::Milliseconds(50);
constexpr int kMaxMessageBytes = 4 << 20;
// A Model waits for the API server most of its time; more of them would only crowd it.
constexpr size_t kReconcilers = 4;
// Besides these: for edits only, so that one never waits for the calls of other Models.
constexpr size_t kUrgentReconcilers = 2;

TlsConfig TlsFrom(const std::string& folder) {
  if (folder.empty()) return {};
  return {absl::StrCat(folder, "/ca.crt"), absl::StrCat(folder, "/tls.crt"),
          absl::StrCat(folder, "/tls.key"), ""};
}

LeaderOptions LeaderFrom(const OperatorOptions& options) {
  LeaderOptions leader;
  leader.lease = {options.own_namespace, "rempart-operator"};
  leader.identity = options.identity;
  leader.address = options.own_address;
  leader.retry = options.lease_retry;
  return leader;
}

ReflectorOptions ReflectorFrom(const OperatorOptions& options) {
  ReflectorOptions reflector;
  reflector.first_pause = options.informer_pause;
  return reflector;
}

LeaderWord LeaderWordOf(const GroupReport& report) {
  const WorkerPhase phase = report.progress.phase;
  if (phase == WorkerPhase::kUnknown) return {report.epoch, "", false, false};
  return {report.epoch, report.pod_name, phase == WorkerPhase::kReady,
          phase == WorkerPhase::kDraining};
}

class OperatorProcess {
 public:
  OperatorProcess(const OperatorOptions& options, Transport* transport, const Clock* clock)
      : options_(options),
        clock_(clock),
        client_(transport),
        informers_(&client_, ReflectorFrom(options)),
        queue_(clock),
        events_(&client_, options.identity, clock),
        executor_(&client_, &informers_, &ledger_, &joins_, &events_, clock,
                  options.copy_worker_tls ? options.own_namespace : ""),
        triggers_(&informers_, &ledger_, &queue_, &topology_),
        joins_(clock, [this](const std::string& group) { triggers_.OnJoin(group); }),
        join_service_(&joins_, {.required_caller = options.tls_dir.empty() ? "" : "rempart-worker",
                                .open = false,
                                .leader_address = [this] { return elector_.leader_address(); },
                                .admit = [this](const auto& who) { return Admit(who); }}),
        topology_service_(options.tls_dir.empty() ? "" : "rempart-router"),
        elector_(&client_, LeaderFrom(options), clock) {}

  int Run(std::stop_token stop, const std::function<void(int)>& on_serving) {
    if (const absl::Status opened = OpenDoors(); !opened.ok()) {
      LogError("operator", opened.message());
      return absl::IsUnavailable(opened) ? kExitAddress : kExitConfig;
    }
    const std::stop_callback pass_on(stop, [this] { stopping_.request_stop(); });
    StartThreads();
    if (on_serving) on_serving(health_ == nullptr ? 0 : health_->port());
    const bool released = elector_.Run(
        stopping_.get_token(), [this] { Lead(); }, [this] { join_service_.Close(); });
    stopping_.request_stop();
    threads_.clear();  // joins
    server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Milliseconds(200)));
    server_->Wait();
    return released ? kExitOk : kExitRuntime;
  }

 private:
  // Before the first list nobody can tell who has been replaced.
  absl::Status Admit(const group::v1::Identity& identity) const {
    if (!informers_.pods.synced()) return absl::OkStatus();
    return CheckHasItsPlace(identity, informers_.pods.store());
  }

  absl::Status OpenDoors() {
    const TlsConfig tls = TlsFrom(options_.tls_dir);
    ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials,
                     ServerCredentials(tls, options_.listen_address));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(options_.listen_address, credentials, &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    // Workers and routers ping every 20 s.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.RegisterService(&join_service_);
    builder.RegisterService(&topology_service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on --listen=", options_.listen_address,
                       ": it is in use, or this process may not open it; choose another address"));
    }
    if (options_.health_address.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(health_, HealthServer::Start(options_.health_address,
                                                  {.live = [this] { return Live(); },
                                                   .ready = [this] { return Ready(); },
                                                   .metrics = [this] { return Metrics(); }}));
    return absl::OkStatus();
  }

  template <typename Work>
  void StartThread(Work work) {
    threads_.emplace_back([this, work] { work(stopping_.get_token()); });
  }

  void StartThreads() {
    StartThread([this](std::stop_token stop) { informers_.models.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.stateful_sets.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.pods.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.services.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.config_maps.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.claims.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.budgets.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.policies.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.nodes.Run(stop); });
    StartThread([this](std::stop_token stop) { informers_.other_pods.Run(stop); });
    StartThread([this](std::stop_token stop) { events_.Run(stop); });
    StartThread([this](std::stop_token stop) { PublishTopology(stop); });
  }

  // Plans need the whole picture: nothing is decided before every store has had its first list.
  void WaitForStores(std::stop_token stop) const {
    absl::Time told = clock_->Now();
    while (!informers_.synced() && !stop.stop_requested()) {
      PauseUnlessStopped(stop, kLook);
      if (clock_->Now() - told < absl::Seconds(10)) continue;
      told = clock_->Now();
      LogWarning("operator", "waiting for the first lists", {{"missing", informers_.Unsynced()}});
    }
  }

  void Lead() {
    listening_since_ = clock_->Now();
    join_service_.Open();
    StartThread([this](std::stop_token stop) {
      WaitForStores(stop);
      std::vector<std::jthread> reconcilers;  // joined at the end
      for (size_t i = 0; i < busy_since_ms_.size(); ++i) {
        const auto run = i < kReconcilers ? RunController : RunUrgentController;
        reconcilers.emplace_back([this, stop, run, &busy_since_ms = busy_since_ms_[i]] {
          run(
              queue_, [&](const ObjectKey& key) { return ReconcileModel(key, busy_since_ms); },
              stop);
        });
      }
    });
  }

  absl::StatusOr<absl::Duration> ReconcileModel(const ObjectKey& key,
                                                std::atomic<int64_t>& busy_since_ms) {
    busy_since_ms = absl::ToUnixMillis(clock_->Now());
    ++reconciles_;
    const absl::StatusOr<absl::Duration> again = PlanAndExecute(key);
    if (!again.ok()) ++reconcile_errors_;
    busy_since_ms = 0;
    return again;
  }

  struct Intended {
    Observed observed;
    Plan plan;
  };

  // None when there is no such Model.
  std::optional<Intended> Look(const ObjectKey& key) {
    const absl::Time now = clock_->Now();
    std::optional<Observed> observed =
        Observe({&informers_, &joins_, &ledger_, clock_->WallNow(), now, now - listening_since_},
                options_.settings, key);
    if (!observed.has_value()) return std::nullopt;
    Plan plan = MakePlan(*observed);
    return Intended{*std::move(observed), std::move(plan)};
  }

  // Plans that give away room are made one at a time: what one promises, the next one sees. All
  // others wait for nobody.
  std::optional<Intended> MakePlanOf(const ObjectKey& key) {
    std::optional<Intended> intended = Look(key);
    if (!intended.has_value() || intended->plan.releases.empty()) return intended;
    MutexLock lock(&promising_);
    intended = Look(key);
    if (intended.has_value()) PromiseReleases(key.ns, intended->plan, ledger_);
    return intended;
  }

  absl::StatusOr<absl::Duration> PlanAndExecute(const ObjectKey& key) {
    const std::optional<Intended> intended = MakePlanOf(key);
    // A deleted Model takes everything with it: all that was made for it names it as owner.
    if (!intended.has_value()) {
      executor_.Forget(key);
      return absl::InfiniteDuration();
    }
    const absl::StatusOr<absl::Duration> again =
        executor_.Execute(intended->observed, intended->plan);
    // An API server that fails often gets a whole Model done step by step, without growing pauses.
    if (!again.ok() && executor_.HasProgressed(key)) queue_.Forget(key);
    return again;
  }

  void PublishTopology(std::stop_token stop) {
    WaitForStores(stop);
    // What the first lists took besides what is kept of them.
    malloc_trim(0);
    const TopologySources sources = {
        [this](const ObjectKey& model) { return informers_.models.store().Get(model); },
        [this](const ObjectKey& model) { return informers_.pods.store().Find(model.ToString()); },
        [this](const ObjectKey& model) {
          return informers_.config_maps.store().Find(model.ToString());
        },
        [this](const std::string& group) { return LeaderWordOf(joins_.Report(group)); }};
    while (!stop.stop_requested()) {
      const absl::Time begun = clock_->Now();
      if (auto snapshot = topology_.Refresh(sources))
        topology_service_.Publish(*std::move(snapshot));
      // With many Models it takes longer: at most a tenth of a core, whatever changes.
      PauseUnlessStopped(stop, std::max(kLook, 9 * (clock_->Now() - begun)));
    }
  }

  HealthReply Live() const {
    int64_t busy = 0;
    for (const int64_t since : busy_since_ms_) {
      if (since != 0) busy = std::max(busy, absl::ToUnixMillis(clock_->Now()) - since);
    }
    const bool stuck = busy > absl::ToInt64Milliseconds(absl::Minutes(10));
    return {stuck ? 503 : 200, absl::StrCat("{\"reconciling_ms\":", busy, "}\n")};
  }

  HealthReply Ready() const {
    return {informers_.synced() ? 200 : 503,
            absl::StrCat("{\"leading\":", elector_.leading() ? "true" : "false",
                         ",\"waiting_for\":\"", informers_.Unsynced(), "\"}\n")};
  }

  std::string Metrics() const {
    OperatorFigures figures;
    figures.leading = elector_.leading();
    figures.reconciles = reconciles_;
    figures.reconcile_errors = reconcile_errors_;
    figures.queued = queue_.waiting();
    for (const auto& model : informers_.models.store().All()) {
      ++figures.models;
      figures.models_ready += model->status().ready_replicas() > 0 ? 1 : 0;
    }
    figures.workers_joined = joins_.streams();
    figures.workers_redirected = join_service_.redirected();
    figures.routers_joined = topology_service_.streams();
    for (const Reflector* reflector :
         {&informers_.models.reflector(), &informers_.stateful_sets.reflector(),
          &informers_.pods.reflector(), &informers_.services.reflector(),
          &informers_.config_maps.reflector(), &informers_.claims.reflector(),
          &informers_.budgets.reflector(), &informers_.policies.reflector(),
          &informers_.nodes.reflector(), &informers_.other_pods.reflector()}) {
      figures.lists += reflector->lists();
      figures.watches += reflector->watches();
    }
    figures.api_calls = client_.calls();
    figures.api_writes = client_.writes();
    figures.lease_writes = client_.lease_writes();
    for (const std::string& group : joins_.groups()) {
      figures.groups.push_back(FiguresOf(group, joins_.Report(group)));
    }
    return MetricsText(figures, kVersion);
  }

  const OperatorOptions& options_;
  const Clock* const clock_;
  const Client client_;
  Informers informers_;
  NodeLedger ledger_;
  WorkQueue queue_;
  EventRecorder events_;
  Executor executor_;
  TopologyCache topology_;
  Triggers triggers_;  // before the streams, whose threads call it
  JoinRegistry joins_;
  JoinService join_service_;
  TopologyService topology_service_;
  LeaderElector elector_;

  absl::Time listening_since_;  // written before the reconciling thread begins
  std::atomic<int64_t> reconciles_ = 0;
  std::atomic<int64_t> reconcile_errors_ = 0;
  // Of each reconciler; 0: idle.
  std::array<std::atomic<int64_t>, kReconcilers + kUrgentReconcilers> busy_since_ms_ = {};
  Mutex promising_;

  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HealthServer> health_;
  std::stop_source stopping_;
  std::vector<std::jthread> threads_;
};

}  // namespace

int RunOperator(const OperatorOptions& options, Transport* transport, const Clock* clock,
                std::stop_token stop, const std::function<void(int)>& on_serving) {
  return OperatorProcess(options, transport, clock).Run(stop, on_serving);
}

}  // namespace rempart::op
