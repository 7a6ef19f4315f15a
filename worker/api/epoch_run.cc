// SPDX-License-Identifier: Apache-2.0
#include "worker/api/epoch_run.h"

#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/group/fabric.h"

namespace rempart::worker {
namespace {

constexpr std::chrono::milliseconds kConnectTimeout{10'000};
// The backstop when the operator is away; with it, silence is noticed within seconds.
constexpr std::chrono::milliseconds kCollectiveTimeout{30'000};
constexpr absl::Duration kFollowersTimeout = absl::Seconds(10);
constexpr absl::Duration kLook = absl::Milliseconds(20);
constexpr absl::Duration kThreadTimeout = absl::Seconds(5);

// Ends the process unless it is destroyed in time.
class Watchdog {
 public:
  Watchdog()
      : thread_([this] {
          MutexLock lock(&mu_);
          if (mu_.AwaitWithTimeout(absl::Condition(&done_), kThreadTimeout)) return;
          LogError("group", "a rank's thread does not come back: ending the process");
          _exit(kExitRuntime);
        }) {}
  ~Watchdog() {
    {
      MutexLock lock(&mu_);
      done_ = true;
    }
    thread_.join();
  }

 private:
  Mutex mu_;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// "8192 bytes: 6.1 us, 14.2 by the library; ..."
std::string OneShotText(const OneShotFacts& facts) {
  if (!facts.absence.empty()) return absl::StrCat("none: ", facts.absence);
  std::string text;
  for (const SumTime& time : facts.times) {
    absl::StrAppendFormat(&text, "%s%d bytes: %.1f us, %.1f by the library",
                          text.empty() ? "" : "; ", time.bytes, time.one_shot_microseconds,
                          time.library_microseconds);
  }
  return text;
}

}  // namespace

EpochRun::EpochRun(const EpochContext& context, EpochOrder order, EpochFate* fate)
    : context_(context), order_(std::move(order)), fate_(fate) {
  const WorkerSettings& settings = *context_.settings;
  if (is_leader() && settings.pod_count > 1) {
    context_.follow->Open(order_.epoch, settings.pod_count, settings.ranks_per_pod, fate_);
  }
}

EpochRun::~EpochRun() {
  const EpochEnd end = fate_->end().value_or(EpochEnd{"the process stops", -1});
  {
    MutexLock lock(&mu_);
    shows_ranks_ = shows_engine_ = shows_client_ = false;
  }
  EndThreads(end);
  if (is_leader()) context_.follow->Close(end.reason);
  context_.orders->Over();
}

void EpochRun::EndThreads(const EpochEnd& end) {
  const Watchdog watchdog;
  for (const auto& communicator : communicators_) {
    communicator->Abort(absl::UnavailableError(end.reason), end.blamed_rank);
  }
  for (const DeviceLink& link : device_links_) {
    link.communicator->Abort(absl::UnavailableError(end.reason));
  }
  if (engine_ != nullptr) context_.attach->LoseGroup();
  engine_thread_.reset();
  engine_.reset();  // with the steps that it has begun
  client_.reset();
  threads_.reset();
  if (device_links_.empty()) return;
  for (const LocalRank& rank : ranks_) rank.model->SetDeviceCommunicator(nullptr);
  device_links_.clear();
}

void EpochRun::NotePart(const char* name, absl::Duration time) {
  if (context_.status->snapshot().epochs_ended == 0) context_.status->AddStartPart(name, time);
}

bool EpochRun::Connect() {
  const WorkerSettings& settings = *context_.settings;
  if (settings.pod_count * settings.ranks_per_pod == 1) return true;
  GroupEpoch group;
  group.epoch = order_.epoch;
  group.key = order_.key;
  group.pod_index = settings.pod_index;
  group.ranks_per_pod = settings.ranks_per_pod;
  group.data_addresses = order_.data_addresses;
  if (settings.pod_count == 1) group.data_addresses = {""};
  CommunicatorOptions options;
  // A stage waits for what those before it compute.
  options.timeout = kCollectiveTimeout * settings.pipeline_parallel;
  // The fate ends the dialling, too.
  std::stop_source give_up;
  std::jthread watch([&](std::stop_token done) {
    while (!done.stop_requested() && !over()) fate_->Wait(kLook);
    give_up.request_stop();
  });
  auto connected =
      ConnectGroup(context_.listener, group, options, kConnectTimeout, give_up.get_token());
  watch.request_stop();
  watch.join();
  if (!connected.ok()) {
    fate_->End(absl::StrCat("cannot link to the group: ", connected.status().message()), -1);
    return false;
  }
  communicators_ = *std::move(connected);
  const absl::StatusOr<FabricFigures> fabric = MeasureFabric(communicators_);
  if (!fabric.ok()) {
    fate_->End(absl::StrCat("the links broke: ", fabric.status().message()),
               communicators_[0]->progress().blamed_rank);
    return false;
  }
  context_.status->SetFabric(*fabric);
  LogInfo("group", "linked",
          {{"epoch", order_.epoch},
           {"ranks", communicators_[0]->size()},
           {"all_reduce_us", fabric->all_reduce_microseconds},
           {"mib_per_s", fabric->mib_per_second}});
  return true;
}

void EpochRun::LinkDevicesOfRanks() {
  const WorkerSettings& settings = *context_.settings;
  const absl::Time begin = SteadyNow();
  std::stop_source give_up;
  std::jthread watch([&](std::stop_token done) {
    while (!done.stop_requested() && !over()) {
      fate_->Wait(kLook);
      Look();
    }
    if (over()) give_up.request_stop();
  });
  DeviceCommunicatorOptions options;
  options.timeout = kCollectiveTimeout;
  auto linked = LinkDevices(*model_->collectives, settings.tensor_parallel, ranks_, options,
                            give_up.get_token());
  watch.request_stop();
  watch.join();
  if (!linked.ok()) {
    return fate_->End(
        absl::StrCat("cannot link the GPUs of the group: ", std::string(linked.status().message())),
        -1);
  }
  device_links_ = *std::move(linked);
  NotePart("link", SteadyNow() - begin);
  if (settings.tensor_parallel > settings.ranks_per_pod) {
    LogWarning("group", "NCCL does not encrypt what the GPUs of several pods say to each other");
  }
  const DeviceCommunicator& first = *device_links_[0].communicator;
  const OneShotFacts one_shot = first.one_shot();
  context_.status->SetOneShot(one_shot);
  LogInfo("group", "GPUs linked",
          {{"epoch", order_.epoch},
           {"ranks", first.size()},
           {"one_shot_max_bytes", one_shot.max_bytes},
           {"one_shot", OneShotText(one_shot)}});
}

absl::Status EpochRun::BeginRanks(LoadedModel& model) {
  const absl::StatusOr<int32_t> blocks = AgreeOnLeast(communicators_, model.engine.blocks_total);
  if (!blocks.ok()) {
    fate_->End(std::string(blocks.status().message()), communicators_[0]->progress().blamed_rank);
    return absl::OkStatus();
  }
  const int32_t first = context_.settings->pod_index * context_.settings->ranks_per_pod;
  const absl::Time begin = SteadyNow();
  for (size_t i = 0; i < model.ranks.size(); ++i) {
    Communicator* const communicator = communicators_.empty() ? nullptr : communicators_[i].get();
    RETURN_IF_ERROR(model.ranks[i]->Begin(communicator, *blocks));
    progress_.push_back(std::make_unique<RankProgress>());
    ranks_.push_back({first + static_cast<int32_t>(i), model.ranks[i].get(), communicator,
                      progress_.back().get()});
  }
  NotePart("allocate", SteadyNow() - begin);
  const auto on_error = [this](int32_t rank, const absl::Status& status) {
    LogWarning("group", "step failed", {{"rank", rank}, {"error", status.message()}});
    const Communicator& communicator = *communicators_[rank % context_.settings->ranks_per_pod];
    fate_->End(std::string(status.message()), communicator.progress().blamed_rank);
  };
  const std::vector<LocalRank> others(ranks_.begin() + (is_leader() ? 1 : 0), ranks_.end());
  if (!others.empty()) threads_ = std::make_unique<RankThreads>(others, on_error);
  if (!is_leader()) return absl::OkStatus();
  GroupRunner::Options options;
  options.epoch = order_.epoch;
  options.stages = context_.settings->pipeline_parallel;
  if (context_.settings->device == DeviceKind::kGpu) {
    options.least_micro_batch = kLeastMicroBatchOnGpu;
  }
  options.first = ranks_[0];
  options.others = threads_.get();
  if (context_.settings->pod_count > 1) {
    options.send = [this](const GroupStep& step) { return context_.follow->Send(step); };
  }
  options.fate = communicators_.empty() ? nullptr : fate_;
  options.on_lost = [this](const absl::Status&) { context_.attach->LoseGroup(); };
  runner_ = std::make_unique<GroupRunner>(std::move(options));
  EngineOptions engine = model.engine;
  engine.blocks_total = *blocks;
  engine_ = std::make_unique<Engine>(
      engine, runner_.get(), model.vocabulary.get(), context_.clock,
      [this](const StepResult& result) { context_.attach->Publish(result); });
  return absl::OkStatus();
}

absl::Status EpochRun::Form() {
  const WorkerSettings& settings = *context_.settings;
  if (settings.pod_count > 1) context_.status->BeginEpoch(order_.epoch);
  if (!Connect()) return absl::OkStatus();
  context_.status->SetPhase(Phase::kLoading);
  ASSIGN_OR_RETURN(model_, context_.load());
  if (over()) return absl::OkStatus();
  // Of ranks on GPUs the sums pass by other ways than the links that were measured.
  if (!communicators_.empty() && model_->collectives == nullptr) {
    context_.status->SetFabricCost(MicrosecondsPerToken(
        context_.status->snapshot().fabric,
        {model_->layers, model_->hidden, settings.tensor_parallel, settings.pipeline_parallel}));
  }
  RETURN_IF_ERROR(BeginRanks(*model_));
  if (over()) return absl::OkStatus();
  if (!is_leader()) {
    ASSIGN_OR_RETURN(client_, FollowClient::Start(
                                  {.leader_address = order_.addresses.at(0),
                                   .tls = {settings.tls.ca_file, settings.tls.certificate_file,
                                           settings.tls.key_file, "rempart-worker"},
                                   .pod_index = settings.pod_index,
                                   .epoch = order_.epoch},
                                  [this](std::shared_ptr<const GroupStep> step) {
                                    return threads_->Push(std::move(step));
                                  },
                                  [this] { return Ranks(); }, fate_));
  }
  {
    MutexLock lock(&mu_);
    shows_ranks_ = true;
    shows_client_ = client_ != nullptr;
  }
  if (model_->collectives != nullptr) LinkDevicesOfRanks();
  if (settings.pod_count == 1) return absl::OkStatus();
  context_.status->SetPhase(Phase::kLoaded);
  while (!over() && !context_.orders->WentOn(order_.epoch)) {
    fate_->Wait(kLook);
    Look();
  }
  return absl::OkStatus();
}

absl::Status EpochRun::WarmUp() {
  SequenceRequest first;
  first.prompt_ids = {0};
  first.max_tokens = 1;
  first.sampling.temperature = 0;
  engine_->Submit(std::move(first));
  while (engine_->Step()) {
  }
  if (over() || engine_->load().requests_failed == 0) return absl::OkStatus();
  return absl::InternalError("the model computed no first token; see the log above");
}

absl::Status EpochRun::Begin() {
  if (is_leader()) return BeginLeading();
  while (!over() && !client_->following()) {
    fate_->Wait(kLook);
    Look();
  }
  return absl::OkStatus();
}

absl::Status EpochRun::BeginLeading() {
  context_.status->SetPhase(Phase::kWarmingUp);
  if (context_.settings->pod_count > 1 && !context_.follow->WaitForFollowers(kFollowersTimeout)) {
    fate_->End("not every pod follows the leader", -1);
    return absl::OkStatus();
  }
  const absl::Time begin = SteadyNow();
  RETURN_IF_ERROR(WarmUp());
  if (over()) return absl::OkStatus();
  NotePart("warm_up", SteadyNow() - begin);
  {
    MutexLock lock(&mu_);
    shows_engine_ = true;
  }
  engine_thread_ = std::make_unique<EngineThread>(engine_.get());
  context_.attach->Open(engine_.get(), model_->encoder.get(), model_->vocabulary.get());
  return absl::OkStatus();
}

void EpochRun::Look() {
  for (const auto& communicator : communicators_) {
    const absl::Status status = communicator->status();
    if (status.ok()) continue;
    return fate_->End(std::string(status.message()), communicator->progress().blamed_rank);
  }
  for (const DeviceLink& link : device_links_) {
    const absl::Status status = link.communicator->status();
    if (!status.ok()) return fate_->End(std::string(status.message()), -1);
  }
}

void EpochRun::Drain(absl::Time deadline) {
  MutexLock lock(&mu_);
  if (shows_engine_) engine_->Drain(deadline);
}

void EpochRun::Resume() {
  MutexLock lock(&mu_);
  if (shows_engine_) engine_->Resume();
}

void EpochRun::SetMemoryShort(const std::string& reason) {
  if (!is_leader()) return client_->TellMemory(reason);
  const std::string others =
      context_.settings->pod_count > 1 ? context_.follow->MemoryShortage() : "";
  engine_->SetMemoryShort(
      absl::StrCat(reason, reason.empty() || others.empty() ? "" : "; ", others));
}

EngineLoad EpochRun::Load() const {
  MutexLock lock(&mu_);
  return shows_engine_ ? engine_->load() : EngineLoad{};
}

std::vector<RankStatus> EpochRun::Ranks() const {
  std::vector<RankStatus> ranks;
  MutexLock lock(&mu_);
  if (!shows_ranks_) return ranks;
  const int32_t first = context_.settings->pod_index * context_.settings->ranks_per_pod;
  for (size_t i = 0; i < progress_.size(); ++i) {
    ranks.push_back(progress_[i]->Read(first + static_cast<int32_t>(i), order_.epoch,
                                       communicators_.empty() ? nullptr : communicators_[i].get()));
  }
  if (shows_client_) {
    RankStatus leader;
    leader.epoch = order_.epoch;
    leader.heard_age_ms = client_->leader_age_ms();
    if (leader.heard_age_ms > 0) ranks.push_back(std::move(leader));
  } else if (is_leader() && context_.settings->pod_count > 1) {
    for (RankStatus& other : context_.follow->Ranks()) ranks.push_back(std::move(other));
  }
  return ranks;
}

}  // namespace rempart::worker
