// SPDX-License-Identifier: Apache-2.0
#include "operator/streams/join_registry.h"

#include <algorithm>

namespace rempart::op {
namespace {

using group::v1::Progress;

// How long a restarted worker may be starting or loading while its last failure is still quoted: an
// invalid file is found sooner than this.
constexpr absl::Duration kQuoteFailure = absl::Seconds(10);

WorkerPhase PhaseOf(Progress::Phase phase) {
  switch (phase) {
    case Progress::STARTING:
      return WorkerPhase::kStarting;
    case Progress::LOADING:
      return WorkerPhase::kLoading;
    case Progress::WARMING_UP:
      return WorkerPhase::kWarmingUp;
    case Progress::READY:
      return WorkerPhase::kReady;
    case Progress::DRAINING:
      return WorkerPhase::kDraining;
    case Progress::FAILED:
      return WorkerPhase::kFailed;
    default:
      return WorkerPhase::kUnknown;
  }
}

int32_t Clamped(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, 0, INT32_MAX));
}

WorkerProgress FromWire(const Progress& wire) {
  WorkerProgress progress;
  progress.phase = PhaseOf(wire.phase());
  progress.bytes_done = wire.bytes_done();
  progress.bytes_total = wire.bytes_total();
  progress.reason = wire.reason();
  progress.message = wire.message();
  progress.digest = wire.digest();
  for (const auto& rank : wire.ranks()) {
    progress.step = std::max(progress.step, Clamped(rank.step()));
    progress.last_step_age_seconds =
        std::max(progress.last_step_age_seconds, Clamped(rank.last_step_age_ms() / 1000));
  }
  return progress;
}

bool IsBeforeWeights(WorkerPhase phase) {
  return phase == WorkerPhase::kUnknown || phase == WorkerPhase::kStarting ||
         phase == WorkerPhase::kLoading;
}

}  // namespace

int32_t JoinRegistry::Joined(int64_t stream, const group::v1::Identity& identity) {
  int32_t epoch = 0;
  {
    MutexLock lock(&mu_);
    streams_[stream] = identity.group_name();
    Entry& entry = groups_[identity.group_name()];
    entry.stream = stream;
    entry.quotes_failure = entry.report.progress.phase == WorkerPhase::kFailed;
    if (!entry.quotes_failure) entry.report.progress = {};
    entry.report.pod_name = identity.pod_name();
    entry.report.at = clock_->Now();
    // Time makes an epoch that no earlier operator has given, without writing any down.
    const auto fresh = Clamped(absl::ToUnixSeconds(clock_->Now()));
    epoch =
        identity.last_epoch() > 0 ? identity.last_epoch() : std::max(entry.report.epoch + 1, fresh);
    entry.report.epoch = epoch;
  }
  on_change_(identity.group_name());
  return epoch;
}

void JoinRegistry::Progressed(int64_t stream, const Progress& wire) {
  std::string changed;
  {
    MutexLock lock(&mu_);
    const auto name = streams_.find(stream);
    if (name == streams_.end()) return;
    Entry& entry = groups_[name->second];
    if (entry.stream != stream) return;
    WorkerProgress progress = FromWire(wire);
    const absl::Time now = clock_->Now();
    if (entry.quotes_failure && IsBeforeWeights(progress.phase) &&
        now - entry.report.at < kQuoteFailure) {
      return;
    }
    entry.quotes_failure = false;
    const bool same = progress.phase == entry.report.progress.phase &&
                      progress.message == entry.report.progress.message;
    if (!same) changed = name->second;
    entry.report.progress = std::move(progress);
    entry.report.at = now;
  }
  if (!changed.empty()) on_change_(changed);
}

void JoinRegistry::Left(int64_t stream) {
  std::string changed;
  {
    MutexLock lock(&mu_);
    const auto name = streams_.find(stream);
    if (name == streams_.end()) return;
    changed = name->second;
    streams_.erase(name);
    const auto found = groups_.find(changed);
    if (found == groups_.end() || found->second.stream != stream) return;
    found->second.stream = 0;
    if (found->second.report.progress.phase != WorkerPhase::kFailed) groups_.erase(found);
  }
  on_change_(changed);
}

GroupReport JoinRegistry::Report(const std::string& group) const {
  MutexLock lock(&mu_);
  const auto found = groups_.find(group);
  return found == groups_.end() ? GroupReport{} : found->second.report;
}

int JoinRegistry::streams() const {
  MutexLock lock(&mu_);
  return static_cast<int>(streams_.size());
}

}  // namespace rempart::op
