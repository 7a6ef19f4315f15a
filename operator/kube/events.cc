// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/events.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"

namespace rempart::op {
namespace {

constexpr char kComponent[] = "rempart-operator";
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr size_t kMaxMessageBytes = 1024;  // the API server's limit

// FNV-1a: the name of an Event must be the same in every process.
uint64_t Digest(const EventRecord& record) {
  uint64_t hash = 0xcbf29ce484222325u;
  const std::string text = absl::StrCat(record.about.uid(), "\n", record.type, "\n", record.reason,
                                        "\n", record.message);
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

std::string Seconds(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone());
}

}  // namespace

void EventRecorder::Record(EventRecord record) {
  MutexLock lock(&mu_);
  if (queued_.size() < kMaxQueued) queued_.push_back(std::move(record));
}

void EventRecorder::Write(const EventRecord& record) {
  // Object names reach 253 bytes; with the digest the name stays within that.
  const std::string name =
      absl::StrFormat("%s.%016x", record.about.name().substr(0, 200), Digest(record));
  if (seen_.size() >= kMaxSeen) seen_.clear();
  Seen& seen = seen_[name];
  if (seen.count++ == 0) seen.first = clock_->WallNow();
  k8s::v1::Event event;
  event.mutable_metadata()->set_name(name);
  event.mutable_metadata()->set_namespace_(record.about.namespace_());
  *event.mutable_involved_object() = record.about;
  event.set_type(record.type);
  event.set_reason(record.reason);
  event.set_message(record.message.substr(0, kMaxMessageBytes));
  event.set_count(seen.count);
  event.set_first_timestamp(Seconds(seen.first));
  event.set_last_timestamp(Seconds(clock_->WallNow()));
  event.set_reporting_component(kComponent);
  event.set_reporting_instance(instance_);
  event.mutable_source()->set_component(kComponent);
  const absl::Status status = events_.Apply(event, kComponent).status();
  // In a namespace that is going away nothing can be created.
  if (!status.ok() && !absl::IsPermissionDenied(status) && !absl::IsNotFound(status)) {
    LogWarning("events", "not written", {{"reason", record.reason}, {"error", status.message()}});
  }
}

void EventRecorder::Run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    EventRecord record;
    {
      MutexLock lock(&mu_);
      const auto any = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queued_.empty(); };
      if (!mu_.AwaitWithTimeout(absl::Condition(&any), kLook)) continue;
      record = std::move(queued_.front());
      queued_.pop_front();
    }
    Write(record);
  }
}

}  // namespace rempart::op
