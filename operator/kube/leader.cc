// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/leader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "operator/kube/wait.h"

namespace rempart::op {
namespace {

constexpr char kAddressAnnotation[] = "rempart.dev/address";

// MicroTime: the API server wants exactly six fractional digits.
std::string MicroTime(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", time, absl::UTCTimeZone());
}

}  // namespace

LeaseMove DecideLease(const std::optional<LeaseView>& view, const LeaderOptions& options,
                      absl::Time now) {
  if (!view.has_value()) return LeaseMove::kCreate;
  const std::string& holder = view->lease.spec().holder_identity();
  if (holder == options.identity) return LeaseMove::kRenew;
  if (holder.empty()) return LeaseMove::kTake;
  const absl::Duration duration =
      std::max(absl::Seconds(view->lease.spec().lease_duration_seconds()), absl::Seconds(1));
  return now - view->unchanged_since >= duration ? LeaseMove::kTake : LeaseMove::kWait;
}

absl::Status LeaderElector::Write(LeaseMove move) {
  k8s::v1::Lease lease;
  lease.mutable_metadata()->set_namespace_(options_.lease.ns);
  lease.mutable_metadata()->set_name(options_.lease.name);
  // Always written: an empty one must not leave the last holder's.
  (*lease.mutable_metadata()->mutable_annotations())[kAddressAnnotation] = options_.address;
  k8s::v1::LeaseSpec& spec = *lease.mutable_spec();
  spec.set_holder_identity(options_.identity);
  spec.set_lease_duration_seconds(static_cast<int32_t>(absl::ToInt64Seconds(options_.duration)));
  spec.set_renew_time(MicroTime(clock_->WallNow()));
  if (move != LeaseMove::kRenew) spec.set_acquire_time(spec.renew_time());
  absl::StatusOr<k8s::v1::Lease> written;
  if (move == LeaseMove::kCreate) {
    written = leases_.Create(lease);
  } else {
    lease.mutable_metadata()->set_resource_version(view_->lease.metadata().resource_version());
    if (move == LeaseMove::kTake) {
      spec.set_lease_transitions(view_->lease.spec().lease_transitions() + 1);
    }
    written = leases_.MergePatch(lease);
  }
  RETURN_IF_ERROR(written.status());
  view_ = LeaseView{*std::move(written), clock_->Now()};
  return absl::OkStatus();
}

absl::StatusOr<bool> LeaderElector::Try() {
  absl::StatusOr<k8s::v1::Lease> lease = leases_.Get(options_.lease);
  if (absl::IsNotFound(lease.status())) {
    view_.reset();
  } else {
    RETURN_IF_ERROR(lease.status());
    if (!view_.has_value() ||
        view_->lease.metadata().resource_version() != lease->metadata().resource_version()) {
      view_ = LeaseView{*std::move(lease), clock_->Now()};
    }
  }
  const LeaseMove move = DecideLease(view_, options_, clock_->Now());
  if (move == LeaseMove::kWait) return false;
  const absl::Status written = Write(move);
  // Somebody else was faster.
  if (absl::IsAborted(written) || absl::IsAlreadyExists(written)) return false;
  RETURN_IF_ERROR(written);
  return true;
}

void LeaderElector::Release() {
  if (!leading_ || !view_.has_value()) return;
  leading_ = false;
  // By hand: protobuf JSON has no null. A holder that changed since answers 409, which is as good.
  const std::string patch = absl::StrCat(R"({"metadata":{"resourceVersion":")",
                                         view_->lease.metadata().resource_version(),
                                         R"("},"spec":{"holderIdentity":null}})");
  (void)client_->MergePatch(leases_.type(), options_.lease, patch);
}

std::string LeaderElector::leader_address() const {
  MutexLock lock(&mu_);
  return leader_address_;
}

void LeaderElector::NoteHolder() {
  std::string address;
  if (view_.has_value() && !view_->lease.spec().holder_identity().empty()) {
    const auto& annotations = view_->lease.metadata().annotations();
    const auto found = annotations.find(kAddressAnnotation);
    if (found != annotations.end()) address = found->second;
  }
  MutexLock lock(&mu_);
  leader_address_ = std::move(address);
}

bool LeaderElector::Run(std::stop_token stop, const std::function<void()>& on_lead,
                        const std::function<void()>& on_end) {
  absl::Time renewed = absl::InfinitePast();
  while (!stop.stop_requested()) {
    const absl::StatusOr<bool> held = Try();
    NoteHolder();
    if (!held.ok()) {
      LogWarning("leader", "lease cannot be read or written",
                 {{"lease", options_.lease.ToString()}, {"error", held.status().message()}});
    }
    if (held.ok() && *held) {
      renewed = clock_->Now();
      if (!leading_.exchange(true)) {
        LogInfo("leader", "leading", {{"identity", options_.identity}});
        on_lead();
      }
    } else if (leading_ && (held.ok() || clock_->Now() - renewed >= options_.renew_deadline)) {
      leading_ = false;
      LogError("leader", "lease lost", {{"lease", options_.lease.ToString()}});
      if (on_end) on_end();
      return false;
    }
    PauseUnlessStopped(stop, options_.retry);
  }
  if (on_end) on_end();
  Release();
  return true;
}

}  // namespace rempart::op
