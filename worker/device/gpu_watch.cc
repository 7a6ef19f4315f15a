// SPDX-License-Identifier: Apache-2.0
#include "worker/device/gpu_watch.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

// Of one wait for XIDs: how late the thread may notice that it is to end.
constexpr absl::Duration kWait = absl::Milliseconds(200);
// How long the destructor waits for a thread that the driver holds.
constexpr absl::Duration kPatience = absl::Seconds(1);

absl::StatusOr<std::vector<std::string>> OurAddresses(const GpuWatchOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<std::string> all, options.find());
  const auto end = static_cast<size_t>(options.first_gpu + options.count);
  if (options.first_gpu < 0 || all.size() < end) {
    return absl::NotFoundError(absl::StrCat("CUDA shows ", all.size(), " GPUs, and this pod's are ",
                                            options.first_gpu, " to ", end - 1));
  }
  return std::vector<std::string>(all.begin() + options.first_gpu,
                                  all.begin() + static_cast<ptrdiff_t>(end));
}

}  // namespace

struct GpuWatch::State {
  State(GpuWatchOptions wanted, std::function<void(const GpuFault&)> handler)
      : options(std::move(wanted)), on_broken(std::move(handler)) {}

  void Run();
  // What is known at first; null when nothing can be watched.
  std::unique_ptr<Nvml> Begin();
  absl::StatusOr<std::unique_ptr<Nvml>> TryBegin();
  void ReadAgain(Nvml& nvml);
  // Takes the XIDs that come within kWait. True when the facts should be read at once.
  bool AwaitErrors(Nvml& nvml);
  void TellIfBroken();
  bool Ends(absl::Duration after);

  const GpuWatchOptions options;
  mutable Mutex mu;
  GpuSnapshot snapshot ABSL_GUARDED_BY(mu);
  bool stopping ABSL_GUARDED_BY(mu) = false;
  bool done ABSL_GUARDED_BY(mu) = false;
  // Held while the handler runs; empty once the watch ends.
  Mutex calling;
  std::function<void(const GpuFault&)> on_broken ABSL_GUARDED_BY(calling);
  // Of the thread.
  bool told_broken = false;
  bool hears_xids = true;
  bool saw_one_gone = false;
};

absl::StatusOr<std::unique_ptr<Nvml>> GpuWatch::State::TryBegin() {
  ASSIGN_OR_RETURN(const std::vector<std::string> addresses, OurAddresses(options));
  ASSIGN_OR_RETURN(std::unique_ptr<Nvml> nvml, Nvml::Load(options.nvml_library));
  ASSIGN_OR_RETURN(std::string driver_version, nvml->DriverVersion());
  ASSIGN_OR_RETURN(const std::vector<GpuFacts> all, nvml->Inventory());
  ASSIGN_OR_RETURN(std::vector<GpuFacts> ours, AtAddresses(all, addresses));
  std::vector<GpuPair> pairs = PairsOf(ours);
  for (GpuPair& pair : pairs) {
    pair.path = nvml->PathBetween(ours[static_cast<size_t>(pair.first)].uuid,
                                  ours[static_cast<size_t>(pair.second)].uuid);
  }
  MutexLock lock(&mu);
  snapshot.driver_version = std::move(driver_version);
  snapshot.cuda_version = nvml->CudaVersion();
  snapshot.pairs = std::move(pairs);
  Renew(std::move(ours), absl::Now(), snapshot);
  return nvml;
}

std::unique_ptr<Nvml> GpuWatch::State::Begin() {
  absl::StatusOr<std::unique_ptr<Nvml>> nvml = TryBegin();
  if (nvml.ok()) return *std::move(nvml);
  const std::string problem(nvml.status().message());
  LogWarning("gpu", "the GPUs are not watched", {{"reason", problem}});
  MutexLock lock(&mu);
  snapshot.problem = absl::StrCat("the GPUs are not watched: ", problem);
  ++snapshot.version;
  return nullptr;
}

void GpuWatch::State::ReadAgain(Nvml& nvml) {
  std::vector<std::string> uuids;
  {
    MutexLock lock(&mu);
    for (const GpuFacts& gpu : snapshot.gpus) uuids.push_back(gpu.uuid);
  }
  std::vector<GpuFacts> gpus;
  for (const std::string& uuid : uuids) {
    absl::StatusOr<GpuFacts> gpu = nvml.Describe(uuid);
    if (!gpu.ok()) return LogWarning("gpu", "cannot be read", {{"error", gpu.status().message()}});
    gpus.push_back(*std::move(gpu));
  }
  MutexLock lock(&mu);
  Renew(std::move(gpus), absl::Now(), snapshot);
}

bool GpuWatch::State::AwaitErrors(Nvml& nvml) {
  if (!hears_xids) {
    (void)Ends(kWait);
    return false;
  }
  const absl::StatusOr<std::vector<GpuError>> errors = nvml.Errors(kWait);
  if (absl::IsUnavailable(errors.status())) {
    (void)Ends(kWait);  // the driver says so without waiting
    return !std::exchange(saw_one_gone, true);
  }
  if (!errors.ok()) {
    hears_xids = false;
    LogWarning("gpu", "XIDs are not heard", {{"reason", errors.status().message()}});
    MutexLock lock(&mu);
    snapshot.problem = absl::StrCat("XIDs are not heard: ", errors.status().message());
    ++snapshot.version;
    return false;
  }
  MutexLock lock(&mu);
  for (const GpuError& error : *errors) {
    LogWarning("gpu", "XID", {{"gpu", error.uuid}, {"xid", error.xid}});
    Record(error, absl::Now(), snapshot);
  }
  return !errors->empty();
}

void GpuWatch::State::TellIfBroken() {
  if (told_broken) return;
  GpuFault fault;
  {
    MutexLock lock(&mu);
    if (!snapshot.fault.has_value() || !snapshot.fault->is_broken) return;
    fault = *snapshot.fault;
  }
  told_broken = true;
  MutexLock lock(&calling);
  if (on_broken) on_broken(fault);
}

bool GpuWatch::State::Ends(absl::Duration after) {
  MutexLock lock(&mu);
  mu.AwaitWithTimeout(absl::Condition(&stopping), after);
  return stopping;
}

void GpuWatch::State::Run() {
  const std::unique_ptr<Nvml> nvml = Begin();
  TellIfBroken();
  absl::Time next = SteadyNow() + options.period;
  while (nvml != nullptr && !Ends(absl::ZeroDuration())) {
    const bool news = AwaitErrors(*nvml);
    TellIfBroken();
    if (!news && SteadyNow() < next) continue;
    next = SteadyNow() + options.period;
    ReadAgain(*nvml);
    TellIfBroken();
  }
}

GpuWatch::GpuWatch(GpuWatchOptions options, std::function<void(const GpuFault&)> on_broken)
    : state_(std::make_shared<State>(std::move(options), std::move(on_broken))) {
  // Not joined: the destructor waits, as long as the driver lets the thread go on.
  std::thread([state = state_] {
    state->Run();
    MutexLock lock(&state->mu);
    state->done = true;
  }).detach();
}

GpuWatch::~GpuWatch() {
  {
    MutexLock lock(&state_->calling);
    state_->on_broken = nullptr;
  }
  MutexLock lock(&state_->mu);
  state_->stopping = true;
  if (!state_->mu.AwaitWithTimeout(absl::Condition(&state_->done), kPatience)) {
    LogWarning("gpu", "the driver does not answer; the thread that watches is left behind");
  }
}

GpuSnapshot GpuWatch::snapshot() const {
  MutexLock lock(&state_->mu);
  return state_->snapshot;
}

int64_t GpuWatch::version() const {
  MutexLock lock(&state_->mu);
  return state_->snapshot.version;
}

}  // namespace rempart::worker
