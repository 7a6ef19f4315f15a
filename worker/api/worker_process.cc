// SPDX-License-Identifier: Apache-2.0
#include "worker/api/worker_process.h"

#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
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
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/api/attach_service.h"
#include "worker/api/epoch_orders.h"
#include "worker/api/epoch_run.h"
#include "worker/api/follow_service.h"
#include "worker/api/group_wire.h"
#include "worker/api/health_server.h"
#include "worker/api/join_client.h"
#include "worker/api/worker_metrics.h"
#include "worker/device/device.h"
#include "worker/device/disk_space.h"
#include "worker/device/memory_limit.h"

namespace rempart::worker {
namespace {

constexpr char kVersion[] = REMPART_VERSION;
// Kubernetes kills a pod 30 s after it asked it to end.
constexpr absl::Duration kDrainDeadline = absl::Seconds(25);
// A forward pass that takes longer than this is stuck.
constexpr absl::Duration kStepLimit = absl::Seconds(120);
constexpr absl::Duration kFlushTimeout = absl::Seconds(2);
// For what was written last to leave the machine, before a process ends without closing streams.
constexpr absl::Duration kLastWords = absl::Milliseconds(100);
// Of the thread of that check; the engine's threads are at 0.
constexpr int kCheckNice = 10;
// How often the outcome of the check that runs beside the service is looked for.
constexpr absl::Duration kCheckPeriod = absl::Milliseconds(250);
// How often the main thread looks around.
constexpr absl::Duration kLook = absl::Milliseconds(20);
// Before a group of one pod whose ranks failed together tries again.
constexpr absl::Duration kPauseAlone = absl::Milliseconds(500);
constexpr int kMaxMessageBytes = 64 << 20;

struct FailureKind {
  const char* reason;
  int exit_code;
};

FailureKind KindOf(const absl::Status& status) {
  if (IsDeviceUnavailable(status)) return {"DeviceUnavailable", kExitDevice};
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

// What the engines of earlier epochs counted: counters grow for the life of the process.
class PastLoad {
 public:
  void Add(const EngineLoad& load) { Sum(load, past_); }
  void AddTo(EngineLoad& load) const { Sum(past_, load); }

 private:
  static void Sum(const EngineLoad& from, EngineLoad& to) {
    for (uint64_t EngineLoad::*const counter :
         {&EngineLoad::steps, &EngineLoad::prompt_tokens, &EngineLoad::generated_tokens,
          &EngineLoad::preemptions, &EngineLoad::prefix_lookups, &EngineLoad::prefix_queried_tokens,
          &EngineLoad::prefix_hit_tokens, &EngineLoad::prefix_evictions, &EngineLoad::forks,
          &EngineLoad::blocks_copied, &EngineLoad::memory_refusals, &EngineLoad::requests_finished,
          &EngineLoad::requests_failed}) {
      to.*counter += from.*counter;
    }
  }
  EngineLoad past_;
};

// Runs a check while the model serves, on what the engine leaves of the CPUs.
class BackgroundCheck {
 public:
  explicit BackgroundCheck(std::function<absl::Status(std::stop_token)> check)
      : thread_([this, check = std::move(check)](std::stop_token stop) {
          if (!check) return;
          // Not SCHED_IDLE: a killed process lives, and keeps its links, until its last thread has
          // had its turn, which on a busy machine takes such a thread many seconds.
          (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kCheckNice);
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
  WorkerProcess(const WorkerSettings& settings, const ModelLoader& load, StopRequest& stop,
                const GpuHost& gpus, const MemoryReader& read_memory)
      : settings_(settings),
        load_(load),
        stop_(stop),
        gpus_(gpus),
        read_memory_(read_memory),
        attach_({.group_name = settings.group_name,
                 .served_names = settings.served_names,
                 .required_caller = TlsIsConfigured(settings.tls) ? "rempart-router" : ""},
                &clock_),
        follow_(TlsIsConfigured(settings.tls) ? "rempart-worker" : "") {}
  ~WorkerProcess() { CloseStreams(); }

  int Run() {
    if (absl::Status opened = OpenDoors(); !opened.ok()) {
      LogError("worker", opened.message());
      return opened.code() == absl::StatusCode::kUnavailable ? kExitAddress : kExitConfig;
    }
    WatchGpus();
    if (is_alone()) orders_.Begin({.epoch = 1});
    while (stop_.signals() == 0) {
      EpochFate fate;
      std::optional<EpochOrder> order = orders_.Take(kLook, &fate);
      if (!order.has_value()) continue;
      const int32_t epoch = order->epoch;
      const absl::Status ran = RunEpoch(*std::move(order), fate);
      if (!ran.ok()) return Fail(ran);
      const EpochEnd end = fate.end().value_or(EpochEnd{"the process stops", -1});
      LogWarning("group", "epoch ended",
                 {{"epoch", epoch}, {"reason", end.reason}, {"blamed_rank", end.blamed_rank}});
      status_.EndEpoch(end);
      if (!is_alone()) continue;
      stop_.Wait(1, SteadyNow() + kPauseAlone);
      orders_.Begin({.epoch = epoch + 1});
    }
    CloseStreams();
    return kExitOk;
  }

 private:
  bool is_alone() const { return settings_.pod_count == 1; }

  // Until the epoch is over or the process has drained; an error ends the process.
  absl::Status RunEpoch(EpochOrder order, EpochFate& fate) {
    const EpochContext context = {
        .settings = &settings_,
        .clock = &clock_,
        .status = &status_,
        .orders = &orders_,
        .attach = &attach_,
        .follow = &follow_,
        .listener = listener_.get(),
        .load = [this] { return LoadOnce(); },
        .stopping = [this] { return stop_.signals() > 0; },
    };
    if (!is_alone()) attach_.SetEpoch(order.epoch);
    auto run = std::make_unique<EpochRun>(context, std::move(order), &fate);
    EpochRun* const shown = run.get();
    {
      MutexLock lock(&mu_);
      run_ = std::move(run);
      draining_ = false;
      drain_deadline_ = absl::InfiniteFuture();
    }
    const absl::Status served = ServeEpoch(*shown, fate);
    {
      MutexLock lock(&mu_);
      past_.Add(run_->Load());
      run = std::move(run_);
    }
    return served;
  }

  absl::Status ServeEpoch(EpochRun& run, EpochFate& fate) {
    const auto over = [&] { return fate.end().has_value() || stop_.signals() > 0; };
    RETURN_IF_ERROR(run.Form());
    if (over()) return absl::OkStatus();
    RETURN_IF_ERROR(run.Begin());
    if (over()) return absl::OkStatus();
    BeReady(run);
    if (!check_.has_value()) check_.emplace(model_->check_later);
    for (absl::Time watch = absl::InfinitePast(); !over() && !check_->failed();) {
      fate.Wait(kLook);
      run.Look();
      if (SteadyNow() < watch) continue;
      watch = SteadyNow() + kCheckPeriod;
      WatchMemory(run);
    }
    // What runs computes with weights that are not the model's.
    if (check_->failed()) return check_->Outcome();
    if (!fate.end().has_value()) Drain(run, fate);
    return absl::OkStatus();
  }

  absl::StatusOr<LoadedModel*> LoadOnce() {
    if (!model_.has_value()) {
      stop_.BeginLoad();
      absl::StatusOr<LoadedModel> model = load_(settings_, status_);
      stop_.EndLoad();
      RETURN_IF_ERROR(model.status());
      MutexLock lock(&mu_);
      model_ = *std::move(model);
    }
    return &*model_;
  }

  void WatchMemory(EpochRun& run) {
    const std::string reason = memory_watch_.Observe(read_memory_());
    if (memory_is_short_.exchange(!reason.empty()) == reason.empty()) {
      LogWarning("worker", reason.empty() ? "memory is no longer short" : "memory is short",
                 {{"reason", reason}});
    }
    run.SetMemoryShort(reason);
  }

  void WatchGpus() {
    if (settings_.device != DeviceKind::kGpu || !gpus_.find) return;
    GpuWatchOptions options;
    options.find = gpus_.find;
    options.first_gpu = settings_.first_gpu;
    options.count = settings_.ranks_per_pod;
    options.nvml_library = gpus_.nvml_library;
    MutexLock lock(&mu_);
    watch_ = std::make_unique<GpuWatch>(std::move(options),
                                        [this](const GpuFault& fault) { EndOfBrokenGpu(fault); });
  }

  // Not under the lock: what it waits for may want it.
  void EndWatch() {
    std::unique_ptr<GpuWatch> ended;
    MutexLock lock(&mu_);
    ended = std::move(watch_);
  }

  // On the thread that watches. Nothing is taken down: a call to that GPU may never return, and
  // the driver frees what was on it.
  void EndOfBrokenGpu(const GpuFault& fault) {
    const std::string message = absl::StrCat(fault.Text(), ". The worker ends; ", fault.advice);
    LogError("worker", message, {{"reason", "GpuBroken"}, {"xid", fault.xid}});
    status_.Fail("GpuBroken", message);
    if (join_ != nullptr) join_->Flush(kFlushTimeout);
    absl::SleepFor(kLastWords);
    if (gpus_.end_process) gpus_.end_process(kExitRuntime);
  }

  GpuSnapshot Gpus() const {
    MutexLock lock(&mu_);
    return watch_ == nullptr ? GpuSnapshot() : watch_->snapshot();
  }

  int Fail(const absl::Status& why) {
    FailureKind kind = KindOf(why);
    const StatusSnapshot known = status_.snapshot();
    const std::vector<int>& sizes = known.tensor_sizes;
    const bool cannot_be_cut =
        std::find(sizes.begin(), sizes.end(), settings_.tensor_parallel) == sizes.end() ||
        settings_.pipeline_parallel > known.layers;
    if (known.layers > 0 && cannot_be_cut) kind = {"InvalidParallelism", kExitConfig};
    LogError("worker", why.message(), {{"reason", kind.reason}});
    status_.Fail(kind.reason, why.message());
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

  absl::Status OpenHealth() {
    if (settings_.health_address.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(health_, HealthServer::Start(
                                  settings_.health_address,
                                  {.live =
                                       [this] {
                                         return LivenessReply(Load(), status_.snapshot(),
                                                              SteadyNow(), kStepLimit);
                                       },
                                   .ready = [this] { return ReadinessReply(status_.snapshot()); },
                                   .metrics =
                                       [this] {
                                         return MetricsText(Load(), status_.snapshot(), Facts(),
                                                            Ranks(), Gpus());
                                       }}));
    return absl::OkStatus();
  }

  absl::Status OpenDoors() {
    RETURN_IF_ERROR(OpenHealth());
    ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials,
                     ServerCredentials(settings_.tls, settings_.listen_address));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(settings_.listen_address, credentials, &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.RegisterService(&attach_);
    builder.RegisterService(&follow_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on listen_address ", settings_.listen_address,
                       ": it is in use, or this process may not open it; choose another address"));
    }
    if (!is_alone()) {
      ASSIGN_OR_RETURN(listener_, LinkListener::Listen(settings_.data_address));
    }
    return settings_.control_address.empty() ? absl::OkStatus() : StartJoin();
  }

  absl::Status StartJoin() {
    JoinIdentity identity;
    identity.group_name = settings_.group_name;
    identity.pod_index = settings_.pod_index;
    identity.pod_name = settings_.pod_name;
    identity.pod_uid = settings_.pod_uid;
    identity.node_name = settings_.node_name;
    identity.address = settings_.advertised_address;
    identity.version = kVersion;
    identity.config_hash = settings_.config_hash;
    identity.pod_count = settings_.pod_count;
    identity.ranks_per_pod = settings_.ranks_per_pod;
    if (listener_ != nullptr) {
      identity.data_address = AdvertisedAddress(listener_->address(), settings_.pod_ip);
    }
    JoinHandlers handlers;
    handlers.on_epoch = [this](const group::v1::Epoch& epoch) { TakeEpoch(epoch); };
    handlers.on_go = [this](int32_t epoch) { orders_.GoOn(epoch); };
    handlers.on_abort = [this](const group::v1::Abort& abort) {
      orders_.End(abort.epoch(), abort.reason(), abort.blamed_rank());
    };
    handlers.on_drain = [this](absl::Duration within) { DrainOnOrder(within); };
    handlers.on_resume = [this] { ResumeOnOrder(); };
    handlers.requests = [this] { return Unfinished(); };
    handlers.ranks = [this] { return Ranks(); };
    // Elsewhere than in a pod nobody ends a process for the sake of a disk.
    if (!settings_.pod_uid.empty()) handlers.node_warning = [this] { return NodeWarning(); };
    handlers.gpu_version = [this] {
      MutexLock lock(&mu_);
      return watch_ == nullptr ? 0 : watch_->version();
    };
    handlers.gpus = [this] {
      group::v1::GpuReport report;
      WriteGpus(Gpus(), &report);
      return report;
    };
    ASSIGN_OR_RETURN(join_, JoinClient::Start(settings_.control_address, settings_.tls, identity,
                                              std::move(handlers), &status_));
    return absl::OkStatus();
  }

  // On the thread of Join alone.
  std::string NodeWarning() {
    const std::vector<DiskSpace> disks = ReadNodeDisks("");
    const auto fullest = FullestOf(disks);
    if (fullest != disks.end()) status_.SetNodeDisk(fullest->free_share());
    return disk_watch_.Observe(disks);
  }

  void TakeEpoch(const group::v1::Epoch& epoch) {
    if (is_alone()) return attach_.SetEpoch(epoch.epoch());
    EpochOrder order;
    order.epoch = epoch.epoch();
    order.addresses.assign(epoch.addresses().begin(), epoch.addresses().end());
    order.data_addresses.assign(epoch.data_addresses().begin(), epoch.data_addresses().end());
    order.key = epoch.key();
    const auto pods = static_cast<size_t>(settings_.pod_count);
    if (order.addresses.size() != pods || order.data_addresses.size() != pods) {
      return LogError("group", "an epoch of another group",
                      {{"epoch", order.epoch}, {"pods", order.addresses.size()}});
    }
    orders_.Begin(std::move(order));
  }

  void BeReady(const EpochRun& run) {
    // Before the phase, so that whoever hears of the one knows the other.
    if (!std::exchange(told_start_, true)) status_.AddStartPart("total", SinceExec());
    {
      MutexLock lock(&mu_);
      if (draining_ && run.engine() != nullptr) run.engine()->Drain(drain_deadline_);
      status_.SetPhase(draining_ ? Phase::kDraining : Phase::kReady);
    }
    LogInfo("worker", "ready",
            {{"model", settings_.model_name},
             {"address", settings_.listen_address},
             {"context_length", model_->engine.context_length},
             {"kv_blocks", model_->engine.blocks_total},
             {"kernels", model_->kernel_tier},
             {"threads", model_->threads},
             {"start", StartText()}});
  }

  // Holds for the epoch that serves; a group that is not replaced serves again in the next.
  void DrainOnOrder(absl::Duration within) {
    if (status_.snapshot().phase != Phase::kReady) return;
    LogInfo("worker", "draining by order", {{"running", Load().running}});
    BeginDrain(within);
  }

  // The group is wanted after all; but a process that was asked to end, ends.
  void ResumeOnOrder() {
    MutexLock lock(&mu_);
    if (!draining_ || leaving_) return;
    draining_ = false;
    drain_deadline_ = absl::InfiniteFuture();
    if (run_ != nullptr) run_->Resume();
    status_.SetPhase(Phase::kReady);
    LogInfo("worker", "resumes by order");
  }

  // What has not ended after `within` is sent elsewhere; zero: it may take its time.
  void BeginDrain(absl::Duration within) {
    MutexLock lock(&mu_);
    draining_ = true;
    if (within > absl::ZeroDuration()) {
      drain_deadline_ = std::min(drain_deadline_, SteadyNow() + within);
    }
    if (run_ != nullptr) run_->Drain(drain_deadline_);
    status_.SetPhase(Phase::kDraining);
  }

  // A leader: until nothing runs. A follower: until the leader has ended the epoch. Or the
  // deadline, or a second signal.
  void Drain(EpochRun& run, EpochFate& fate) {
    {
      MutexLock lock(&mu_);
      leaving_ = true;
    }
    BeginDrain(kDrainDeadline);
    const absl::Time deadline = SteadyNow() + kDrainDeadline + kFlushTimeout;
    LogInfo("worker", "draining", {{"running", Load().running}, {"waiting", Load().waiting}});
    const auto has_work = [&] { return !run.is_leader() || Unfinished() > 0; };
    while (has_work() && !fate.end().has_value() && SteadyNow() < deadline && stop_.signals() < 2) {
      fate.Wait(kLook);
      run.Look();
    }
    LogInfo("worker", "stopping", {{"unfinished", Unfinished()}});
  }

  void CloseStreams() {
    EndWatch();
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
    EngineLoad load = run_ == nullptr ? EngineLoad{} : run_->Load();
    past_.AddTo(load);
    load.memory_short |= memory_is_short_;
    return load;
  }

  // Requests that run or wait. What a step has just taken in is counted when the step is over; that
  // it is busy is known before.
  int32_t Unfinished() const {
    const EngineLoad load = Load();
    const auto counted = static_cast<int32_t>(load.running + load.waiting);
    return counted == 0 && load.busy_since != absl::InfiniteFuture() ? 1 : counted;
  }

  std::vector<RankStatus> Ranks() const {
    MutexLock lock(&mu_);
    return run_ == nullptr ? std::vector<RankStatus>() : run_->Ranks();
  }

  WorkerFacts Facts() const {
    WorkerFacts facts;
    facts.model_name = settings_.model_name;
    facts.group_name = settings_.group_name;
    facts.version = kVersion;
    MutexLock lock(&mu_);
    if (model_.has_value()) {
      facts.kernel_tier = model_->kernel_tier;
      facts.threads = model_->threads;
    }
    return facts;
  }

  const WorkerSettings& settings_;
  const ModelLoader& load_;
  StopRequest& stop_;
  const GpuHost& gpus_;
  const MemoryReader& read_memory_;
  SystemClock clock_;
  WorkerStatus status_;
  bool told_start_ = false;
  EpochOrders orders_;
  mutable Mutex mu_;
  // Set once, by the main thread, which alone reads it without the lock.
  std::optional<LoadedModel> model_;
  PastLoad past_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool leaving_ ABSL_GUARDED_BY(mu_) = false;  // asked to end
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  MemoryWatch memory_watch_;  // of the main thread
  DiskWatch disk_watch_;      // of the thread of Join
  std::atomic<bool> memory_is_short_ = false;
  AttachService attach_;
  FollowService follow_;
  std::unique_ptr<LinkListener> listener_;
  std::unique_ptr<EpochRun> run_ ABSL_GUARDED_BY(mu_);
  std::optional<BackgroundCheck> check_;
  std::unique_ptr<HealthServer> health_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<JoinClient> join_;
  std::unique_ptr<GpuWatch> watch_ ABSL_GUARDED_BY(mu_);  // ends before the streams
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

int ExitCodeOf(const absl::Status& status) { return KindOf(status).exit_code; }

int RunWorker(const WorkerSettings& settings, const ModelLoader& load, StopRequest& stop,
              const GpuHost& gpus, const MemoryReader& read_memory) {
  return WorkerProcess(settings, load, stop, gpus, read_memory).Run();
}

}  // namespace rempart::worker
