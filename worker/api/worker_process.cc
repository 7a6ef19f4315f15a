// SPDX-License-Identifier: Apache-2.0
#include "worker/api/worker_process.h"

#include <grpcpp/grpcpp.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/api/attach_service.h"
#include "worker/api/health_server.h"
#include "worker/api/join_client.h"
#include "worker/api/worker_metrics.h"
#include "worker/device/memory_limit.h"
#include "worker/engine/engine_thread.h"

namespace rempart::worker {
namespace {

constexpr char kVersion[] = REMPART_VERSION;
// Kubernetes kills a pod 30 s after it asked it to end.
constexpr absl::Duration kDrainDeadline = absl::Seconds(25);
// A forward pass that takes longer than this is stuck.
constexpr absl::Duration kStepLimit = absl::Seconds(120);
constexpr absl::Duration kFlushTimeout = absl::Seconds(2);
// How often the outcome of the check that runs beside the service is looked for.
constexpr absl::Duration kCheckPeriod = absl::Milliseconds(250);
constexpr int kMaxMessageBytes = 64 << 20;

struct FailureKind {
  const char* reason;
  int exit_code;
};

FailureKind KindOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return {"WeightsNotFound", kExitModel};
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kDataLoss:
      return {"InvalidModelFile", kExitModel};
    case absl::StatusCode::kUnimplemented:
      return {"UnsupportedArchitecture", kExitModel};
    case absl::StatusCode::kResourceExhausted:
      return {"InsufficientMemory", kExitMemory};
    case absl::StatusCode::kFailedPrecondition:
      return {"InvalidConfig", kExitConfig};
    default:
      return {"Failed", kExitRuntime};
  }
}

// Since this process was started, as the kernel counts it (in hundredths of a second).
absl::Duration SinceExec() {
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  // Fields count from the one after the name, which may hold anything.
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(text).substr(text.rfind(')') + 1), ' ', absl::SkipEmpty());
  int64_t ticks = 0;
  timespec now = {};
  if (fields.size() < 20 || !absl::SimpleAtoi(fields[19], &ticks)) return absl::ZeroDuration();
  clock_gettime(CLOCK_BOOTTIME, &now);
  return absl::DurationFromTimespec(now) -
         absl::Seconds(static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK)));
}

// Runs a check while the model serves, on what the engine leaves of the CPUs.
class BackgroundCheck {
 public:
  explicit BackgroundCheck(std::function<absl::Status(std::stop_token)> check)
      : thread_([this, check = std::move(check)](std::stop_token stop) {
          if (!check) return;
          const sched_param none = {};
          // Refused, it takes its share like any other thread.
          (void)pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
          outcome_ = check(stop);
          failed_ = !outcome_.ok() && !absl::IsCancelled(outcome_);
        }) {}
  bool failed() const { return failed_; }
  // After failed().
  const absl::Status& Outcome() const { return outcome_; }

 private:
  absl::Status outcome_;
  std::atomic<bool> failed_ = false;
  std::jthread thread_;
};

// Members are destroyed from the last to the first: streams end before the engine that serves them.
class WorkerProcess {
 public:
  WorkerProcess(const WorkerSettings& settings, StopRequest& stop)
      : settings_(settings),
        stop_(stop),
        attach_({.group_name = settings.group_name,
                 .served_names = settings.served_names,
                 .required_caller = TlsIsConfigured(settings.tls) ? "rempart-router" : ""},
                &clock_) {}
  ~WorkerProcess() { CloseStreams(); }

  int Run(const ModelLoader& load) {
    if (absl::Status opened = OpenDoors(); !opened.ok()) {
      LogError("worker", opened.message());
      return opened.code() == absl::StatusCode::kUnavailable ? kExitAddress : kExitConfig;
    }
    stop_.BeginLoad();
    const absl::Status ready = LoadAndWarmUp(load);
    stop_.EndLoad();
    if (!ready.ok()) return Fail(ready);
    Engine* const engine = BeReady();
    EngineThread thread(engine);
    attach_.Open(engine, model_.encoder.get(), model_.vocabulary.get());
    LogInfo("worker", "ready",
            {{"model", settings_.model_name},
             {"address", settings_.listen_address},
             {"context_length", engine->options().context_length},
             {"kv_blocks", engine->options().blocks_total},
             {"kernels", model_.kernel_tier},
             {"start", StartText()}});
    BackgroundCheck check(model_.check_later);
    while (stop_.signals() == 0 && !check.failed()) {
      WatchMemory(*engine);
      stop_.Wait(1, absl::Now() + kCheckPeriod);
    }
    // What runs computes with weights that are not the model's.
    if (check.failed()) return Fail(check.Outcome());
    Drain();
    CloseStreams();
    return kExitOk;
  }

 private:
  void WatchMemory(Engine& engine) {
    std::string reason = memory_watch_.Observe(ReadMemoryUse(""));
    if (reason.empty() != memory_reason_.empty()) {
      LogWarning("worker", reason.empty() ? "memory is no longer short" : "memory is short",
                 {{"reason", reason}});
    }
    if (reason != memory_reason_) engine.SetMemoryShort(reason);
    memory_reason_ = std::move(reason);
  }

  int Fail(const absl::Status& why) {
    const FailureKind kind = KindOf(why);
    LogError("worker", why.message(), {{"reason", kind.reason}});
    status_.Fail(kind.reason, std::string(why.message()));
    if (join_ != nullptr) join_->Flush(kFlushTimeout);
    return kind.exit_code;
  }

  // "open 3 ms, repack 40 ms": parts overlap.
  std::string StartText() const {
    return absl::StrJoin(
        status_.snapshot().start_parts, ", ", [](std::string* out, const StartPart& part) {
          absl::StrAppend(out, part.name, " ", absl::ToInt64Milliseconds(part.time), " ms");
        });
  }

  absl::Status OpenDoors() {
    if (!settings_.health_address.empty()) {
      ASSIGN_OR_RETURN(
          health_,
          HealthServer::Start(
              settings_.health_address,
              {.live =
                   [this] {
                     return LivenessReply(Load(), status_.snapshot(), absl::Now(), kStepLimit);
                   },
               .ready = [this] { return ReadinessReply(status_.snapshot()); },
               .metrics = [this] { return MetricsText(Load(), status_.snapshot(), Facts()); }}));
    }
    ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials,
                     ServerCredentials(settings_.tls, settings_.listen_address));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(settings_.listen_address, credentials, &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.RegisterService(&attach_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on listen_address ", settings_.listen_address,
                       ": it is in use, or this process may not open it; choose another address"));
    }
    if (settings_.control_address.empty()) return absl::OkStatus();
    JoinIdentity identity;
    identity.group_name = settings_.group_name;
    identity.pod_index = settings_.pod_index;
    identity.pod_name = settings_.pod_name;
    identity.node_name = settings_.node_name;
    identity.address = settings_.advertised_address;
    identity.version = kVersion;
    ASSIGN_OR_RETURN(join_,
                     JoinClient::Start(settings_.control_address, settings_.tls, identity,
                                       {.on_epoch = [this](int32_t e) { attach_.SetEpoch(e); },
                                        .on_drain = [this](absl::Duration d) { BeginDrain(d); },
                                        .rank_progress = [this] { return RankProgress(); }},
                                       &status_));
    return absl::OkStatus();
  }

  absl::Status LoadAndWarmUp(const ModelLoader& load) {
    status_.SetPhase(Phase::kLoading);
    ASSIGN_OR_RETURN(model_, load(settings_, status_));
    const absl::Time warming = absl::Now();
    status_.SetPhase(Phase::kWarmingUp);
    auto engine = std::make_unique<Engine>(
        model_.engine, model_.runner.get(), model_.vocabulary.get(), &clock_,
        [this](const StepResult& result) { attach_.Publish(result); });
    SequenceRequest first;
    first.prompt_ids = {0};
    first.max_tokens = 1;
    first.sampling.temperature = 0;
    engine->Submit(std::move(first));
    while (engine->Step()) {
    }
    if (engine->load().requests_failed > 0) {
      return absl::InternalError("the model computed no first token; see the log above");
    }
    status_.AddStartPart("warm_up", absl::Now() - warming);
    status_.AddStartPart("total", SinceExec());
    MutexLock lock(&mu_);
    engine_ = std::move(engine);
    if (draining_) engine_->Drain(drain_deadline_);
    return absl::OkStatus();
  }

  Engine* BeReady() {
    MutexLock lock(&mu_);
    if (!draining_) status_.SetPhase(Phase::kReady);
    return engine_.get();
  }

  // What has not ended after `within` is sent elsewhere; zero: it may take its time.
  void BeginDrain(absl::Duration within) {
    MutexLock lock(&mu_);
    draining_ = true;
    if (within > absl::ZeroDuration()) {
      drain_deadline_ = std::min(drain_deadline_, absl::Now() + within);
    }
    if (engine_ != nullptr) engine_->Drain(drain_deadline_);
    status_.SetPhase(Phase::kDraining);
  }

  // Until nothing runs, a while after the deadline, or a second signal.
  void Drain() {
    BeginDrain(kDrainDeadline);
    const absl::Time deadline = absl::Now() + kDrainDeadline + kFlushTimeout;
    LogInfo("worker", "draining", {{"running", Load().running}, {"waiting", Load().waiting}});
    while (Load().running + Load().waiting > 0 && absl::Now() < deadline && stop_.signals() < 2) {
      stop_.Wait(2, absl::Now() + absl::Milliseconds(20));
    }
    LogInfo("worker", "stopping", {{"unfinished", Load().running + Load().waiting}});
  }

  void CloseStreams() {
    join_.reset();
    if (server_ == nullptr) return;
    // Finished streams get a moment to carry their last frames.
    server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Milliseconds(200)));
    server_->Wait();
    server_.reset();
    health_.reset();
  }

  EngineLoad Load() const {
    MutexLock lock(&mu_);
    return engine_ == nullptr ? EngineLoad{} : engine_->load();
  }

  WorkerFacts Facts() const {
    WorkerFacts facts;
    facts.model_name = settings_.model_name;
    facts.group_name = settings_.group_name;
    facts.version = kVersion;
    MutexLock lock(&mu_);
    if (engine_ != nullptr) facts.kernel_tier = model_.kernel_tier;
    return facts;
  }

  group::v1::RankProgress RankProgress() const {
    const EngineLoad load = Load();
    group::v1::RankProgress progress;
    progress.set_step(static_cast<int64_t>(load.steps));
    if (load.steps > 0) {
      progress.set_last_step_age_ms(
          static_cast<int32_t>(absl::ToInt64Milliseconds(absl::Now() - load.last_step)));
    }
    progress.set_activity(load.running > 0 ? "compute" : "idle");
    return progress;
  }

  const WorkerSettings& settings_;
  StopRequest& stop_;
  SystemClock clock_;
  WorkerStatus status_;
  LoadedModel model_;
  mutable Mutex mu_;
  std::unique_ptr<Engine> engine_ ABSL_GUARDED_BY(mu_);  // set once, when warm
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  MemoryWatch memory_watch_;   // of the thread in Run
  std::string memory_reason_;  // what the engine was told last
  AttachService attach_;  // after the engine, whose load its heartbeat reads until it is destroyed
  std::unique_ptr<HealthServer> health_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<JoinClient> join_;
};

}  // namespace

AfterSignal StopRequest::Signal() {
  MutexLock lock(&mu_);
  ++signals_;
  return loading_ ? AfterSignal::kExit : AfterSignal::kWait;
}

void StopRequest::BeginLoad() {
  MutexLock lock(&mu_);
  loading_ = true;
}

void StopRequest::EndLoad() {
  MutexLock lock(&mu_);
  loading_ = false;
}

int StopRequest::signals() const {
  MutexLock lock(&mu_);
  return signals_;
}

void StopRequest::Wait(int signals, absl::Time until) const {
  const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return signals_ >= signals; };
  MutexLock lock(&mu_);
  mu_.AwaitWithDeadline(absl::Condition(&enough), until);
}

int RunWorker(const WorkerSettings& settings, const ModelLoader& load, StopRequest& stop) {
  return WorkerProcess(settings, stop).Run(load);
}

}  // namespace rempart::worker
