// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/reflector.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "operator/kube/wait.h"

namespace rempart::op {
namespace {

// An event that cannot be read makes the store doubtful, as an expired version does: list again.
bool NeedsList(const absl::Status& status) {
  return absl::IsOutOfRange(status) || absl::IsInvalidArgument(status);
}

}  // namespace

bool IsOlderVersion(absl::string_view a, absl::string_view b) {
  uint64_t x = 0;
  uint64_t y = 0;
  return absl::SimpleAtoi(a, &x) && absl::SimpleAtoi(b, &y) && x < y;
}

Reflector::Reflector(const Client* client, ResourceType type, ReflectorOptions options,
                     ReflectorSink sink)
    : client_(client),
      type_(type),
      options_(std::move(options)),
      sink_(std::move(sink)),
      jitter_(std::random_device{}()) {}

absl::Status Reflector::List() {
  std::string version;
  RETURN_IF_ERROR(sink_.replace([&](const OnItem& on_item) -> absl::Status {
    ASSIGN_OR_RETURN(version, client_->List(type_, options_.ns, options_.label_selector, on_item));
    return absl::OkStatus();
  }));
  resource_version_ = version;
  last_resync_ = SteadyNow();
  ++lists_;
  synced_ = true;
  state_ = State::kWatching;
  return absl::OkStatus();
}

absl::Status Reflector::TakeEvent(const WatchEvent& event) {
  if (event.kind != WatchKind::kBookmark) RETURN_IF_ERROR(sink_.change(event));
  // Events may come out of order; resuming from the oldest seen would repeat, from the newest skip
  // nothing, because what is late has then been sent already.
  if (!event.resource_version.empty() &&
      !IsOlderVersion(event.resource_version, resource_version_)) {
    resource_version_ = event.resource_version;
  }
  return absl::OkStatus();
}

absl::Status Reflector::Watch(std::stop_token stop) {
  ++watches_;
  WatchOptions options;
  options.ns = options_.ns;
  options.label_selector = options_.label_selector;
  options.resource_version = resource_version_;
  options.timeout_seconds = options_.watch_timeout_seconds;
  absl::Status taken;
  const absl::Status ended = client_->Watch(
      type_, options,
      [&](WatchEvent event) {
        taken = TakeEvent(event);
        if (taken.ok()) failures_ = 0;
        return taken.ok();
      },
      stop);
  RETURN_IF_ERROR(taken);
  RETURN_IF_ERROR(ended);
  if (!stop.stop_requested() && SteadyNow() - last_resync_ >= options_.resync) {
    last_resync_ = SteadyNow();
    sink_.resync();
  }
  return absl::OkStatus();
}

absl::Duration Reflector::NextPause(bool failed) {
  if (!failed) {
    failures_ = 0;
    return absl::ZeroDuration();
  }
  const absl::Duration pause = std::min(
      options_.first_pause * (int64_t{1} << std::min(failures_, 20)), options_.longest_pause);
  ++failures_;
  return pause * std::uniform_real_distribution<double>(0.5, 1.0)(jitter_);
}

void Reflector::Run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    const absl::Time started = SteadyNow();
    const bool listing = state_ == State::kEmpty;
    const absl::Status status = listing ? List() : Watch(stop);
    if (stop.stop_requested()) return;
    if (!status.ok()) {
      LogWarning("informer", listing ? "list failed" : "watch broke",
                 {{"resource", type_.plural}, {"error", status.message()}});
    }
    // An expired version while watching costs no pause: the list that follows may fail and pause.
    if (!listing && NeedsList(status)) state_ = State::kEmpty;
    const bool too_short = !listing && SteadyNow() - started < options_.first_pause;
    const absl::Duration pause = NextPause(!status.ok() || too_short);
    if (pause > absl::ZeroDuration()) PauseUnlessStopped(stop, pause);
  }
}

}  // namespace rempart::op
