// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/members.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "operator/plan/status.h"
#include "operator/reconcile/observe.h"

namespace rempart::op {
namespace {

int32_t Milliseconds(absl::Duration duration) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(duration), 0, INT32_MAX));
}

int32_t Clamped(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, 0, INT32_MAX));
}

void ObserveGpus(const GpusReport& report, MemberObservation& member) {
  member.gpus = report.gpus;
  member.gpu_concern = report.concern;
  if (!report.fault.has_value()) return;
  GpuFaultObservation& fault = member.gpu_fault.emplace();
  fault.gpu = report.fault->gpu;
  fault.xid = report.fault->xid;
  fault.meaning = report.fault->meaning;
  fault.advice = report.fault->advice;
  fault.time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", report.fault->at, absl::UTCTimeZone());
  fault.broken = report.fault->is_broken;
}

MemberObservation ObserveMember(const MemberReport& report) {
  MemberObservation member;
  member.pod_index = report.pod_index;
  member.pod = report.pod_name;
  member.node = report.node_name;
  member.connected = report.connected;
  member.silent_ms = Milliseconds(report.silent_for);
  member.phase = report.progress.phase;
  member.epoch = report.epoch;
  member.step = report.progress.step;
  member.last_step_age_seconds = report.progress.last_step_age_seconds;
  ObserveGpus(report.gpus, member);
  member.node_warning = report.node_warning;
  // Of several ranks in one pod, the one that has been at it the longest.
  absl::Duration longest = absl::ZeroDuration();
  for (const RankReport& rank : report.ranks) {
    if (!member.activity.empty() && rank.activity_age <= longest) continue;
    longest = rank.activity_age;
    member.activity = rank.activity;
    member.step = Clamped(rank.step);
    member.last_step_age_seconds = Clamped(absl::ToInt64Seconds(rank.step_age));
  }
  if (!report.ranks.empty()) {
    member.first_rank =
        std::min_element(report.ranks.begin(), report.ranks.end(),
                         [](const auto& a, const auto& b) { return a.rank < b.rank; })
            ->rank;
  }
  return member;
}

}  // namespace

MembersObservation ObserveMembers(const GroupReport& report, absl::Time now) {
  MembersObservation seen;
  seen.fabric = {report.fabric.all_reduce_microseconds, report.fabric.mib_per_second,
                 report.fabric.microseconds_per_token, report.fabric.one_shot_kib};
  for (const auto& [part, milliseconds] : report.start) seen.start.push_back({part, milliseconds});
  // A group of one pod has nobody to wait for.
  if (report.pod_count < 2) {
    seen.epoch = report.epoch;
    seen.running = true;
    for (const MemberReport& member : report.members) seen.members.push_back(ObserveMember(member));
    return seen;
  }
  seen.epoch = report.epoch;
  seen.waits_for = report.waits_for;
  seen.running = report.epoch > report.last_ending.epoch;
  const EndingReport& ending = report.last_ending;
  seen.ending = {ending.epoch,
                 ending.reason,
                 ending.blamed_pods,
                 Milliseconds(ending.detection),
                 Milliseconds(now - ending.at),
                 ending.blamed_ranks,
                 ending.blamed_pod_uids};
  for (const MemberReport& member : report.members) seen.members.push_back(ObserveMember(member));
  return seen;
}

absl::Status CheckHasItsPlace(const group::v1::Identity& identity,
                              const Store<k8s::v1::Pod>& pods) {
  if (identity.pod_uid().empty()) return absl::OkStatus();  // it does not say, nor who it is
  const ObjectKey key = {ModelOfGroup(identity.group_name()).ns, identity.pod_name()};
  const auto pod = pods.Get(key);
  if (pod != nullptr && pod->metadata().uid() == identity.pod_uid()) return absl::OkStatus();
  // One that has just come may be here before the word of it is.
  if (pod == nullptr && identity.last_epoch() == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "pod ", key.ToString(), " with uid ", identity.pod_uid(), " ",
      pod == nullptr ? "is no more there"
                     : absl::StrCat("has been replaced by one with uid ", pod->metadata().uid())));
}

GroupFigures FiguresOf(const std::string& group, const GroupReport& report) {
  GroupFigures figures;
  figures.group = group;
  for (const auto& [phase, time] : report.time_in_phase) {
    figures.seconds_in_state[GroupPhaseName(phase)] += absl::ToDoubleSeconds(time);
  }
  figures.of_several = report.pod_count > 1;
  if (!figures.of_several) return figures;
  figures.aborts_by_rank = report.aborts_by_rank;
  figures.recovery_seconds_sum = report.recovery_times.sum_seconds;
  for (size_t i = 0; i < RecoveryTimes::kBounds.size(); ++i) {
    figures.recovery_buckets.emplace_back(RecoveryTimes::kBounds[i],
                                          report.recovery_times.at_most[i]);
  }
  figures.epochs_ended = report.epochs_ended;
  figures.recoveries = report.recoveries;
  figures.last_recovery_seconds = absl::ToDoubleSeconds(report.last_recovery);
  figures.last_detection_seconds = absl::ToDoubleSeconds(report.last_ending.detection);
  for (const MemberReport& member : report.members) {
    if (!member.blamed) continue;
    const int32_t rank = member.ranks.empty() ? member.pod_index : member.ranks[0].rank;
    figures.blamed.push_back({member.pod_name, member.node_name, rank});
  }
  return figures;
}

}  // namespace rempart::op
