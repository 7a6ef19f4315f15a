// SPDX-License-Identifier: Apache-2.0
// What the workers say of themselves on their Join streams, by group; and the orders that
// Coordinate gives to the members of groups of several pods. Kept nowhere else: after a restart of
// the operator the workers dial again and say it again. Any thread.
// 1. The last stream of a pod counts; what an older one says later is ignored.
// 2. A worker that said why it failed is quoted until it gets further than that: it dies and starts
//    again with pauses in between, and the reason must not flicker.
//    So is what it said of its GPUs, until its next process says something of them.
// 3. Any other broken stream leaves its pod unknown; then the pod's readiness counts.
// 4. A group of one pod is complete by itself: its epoch comes at once.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "operator/group/coordinate.h"
#include "operator/plan/observed.h"
#include "operator/streams/gpus_report.h"
#include "proto/group/v1/group.pb.h"

namespace rempart::op {

struct RankReport {
  int32_t rank = 0;
  int64_t step = 0;
  absl::Duration step_age = {};
  std::string activity = {};
  absl::Duration activity_age = {};
  std::vector<int32_t> waiting_for = {};
};

// One pod of a group.
struct MemberReport {
  int32_t pod_index = 0;
  std::string pod_name = {};
  std::string node_name = {};
  std::string address = {};  // where it serves Attach, when it leads
  std::string config_hash = {};
  bool connected = false;
  // Since it last said anything; counted while this process was awake.
  absl::Duration silent_for = {};
  bool blamed = false;  // for the end of the last epoch, and not back in one since
  WorkerProgress progress = {};
  int32_t epoch = 0;  // that it is in; 0: none
  int64_t weight_bytes_read = 0;
  std::vector<RankReport> ranks = {};  // its own
  GpusReport gpus = {};
  std::string node_warning = {};
};

struct EndingReport {
  int32_t epoch = 0;  // 0: none has ended
  std::string reason = {};
  std::vector<int32_t> blamed_ranks = {};
  std::vector<std::string> blamed_pods = {};
  std::vector<std::string> blamed_pod_uids = {};  // as long; empty: not told
  absl::Time at = {};
  absl::Duration detection = {};
};

struct FabricReport {
  int32_t all_reduce_microseconds = 0;
  int32_t mib_per_second = 0;
  int32_t microseconds_per_token = 0;  // 0: not measured, or a group of one rank
  int32_t one_shot_kib = 0;            // of sums between GPUs
};

// A part of the start of a pod's process, in milliseconds.
using StartReport = std::vector<std::pair<std::string, int32_t>>;

// How long recoveries took, in buckets as a Prometheus histogram has them.
struct RecoveryTimes {
  // Upper bounds in seconds; what took longer is in `count` alone.
  static constexpr std::array<double, 10> kBounds = {0.5, 1, 2, 4, 8, 16, 32, 64, 128, 300};

  std::array<int64_t, kBounds.size()> at_most = {};  // cumulative
  int64_t count = 0;
  double sum_seconds = 0;

  void Add(absl::Duration took);
};

struct GroupReport {
  // Of the whole: the leader's phase unless a member has failed, bytes of all members together.
  WorkerProgress progress = {};
  std::string pod_name = {};  // the leader's
  std::string address = {};   // the leader's
  int32_t epoch = 0;
  absl::Time at = {};  // when the leader last said anything
  int32_t pod_count = 1;
  std::vector<MemberReport> members = {};  // by pod index
  // Why no epoch has begun: "waits for pod 1 (1 of 2 pods are there)"; empty: one has.
  std::string waits_for = {};
  EndingReport last_ending = {};
  FabricReport fabric = {};
  StartReport start = {};  // the leader's
  // Since this process began.
  int64_t epochs_ended = 0;
  int64_t recoveries = 0;
  absl::Duration last_recovery = {};  // from the ending until it served again
  RecoveryTimes recovery_times = {};
  // Epochs that ended, by the first rank that is blamed for it (-1: nobody); counted when the next
  // epoch begins, because an ending may find a better explanation until then.
  std::map<int32_t, int64_t> aborts_by_rank = {};
  std::map<WorkerPhase, absl::Duration> time_in_phase = {};
};

class JoinRegistry {
 public:
  using Send = std::function<void(group::v1::ToMember)>;

  // `on_change` gets the name of a group ("namespace/model-0") whose phase or epoch has changed; it
  // must not call back.
  JoinRegistry(const Clock* clock, std::function<void(const std::string& group)> on_change)
      : clock_(clock), on_change_(std::move(on_change)) {}

  // A stream has introduced itself. `send` is called under the registry's lock until Left returns.
  void Joined(int64_t stream, const group::v1::Identity& identity, Send send);
  void Progressed(int64_t stream, const group::v1::Progress& progress);
  void ToldGpus(int64_t stream, const group::v1::GpuReport& gpus);
  void Left(int64_t stream);
  // Tells the group's leader to finish what runs within `deadline` (zero: without one) and to take
  // nothing new; does nothing when no leader is on a stream, or when it says that it drains.
  void Drain(const std::string& group, absl::Duration deadline);
  // Tells a leader that drains that the group is wanted after all.
  void Resume(const std::string& group);
  // Called a few times a second with the monotonic time since the last call: silence is judged, and
  // waiting. Of a longer sleep only the usual part counts.
  void Tick(absl::Duration elapsed);

  // Unknown when no stream has said anything.
  GroupReport Report(const std::string& group) const;
  // Names of all groups that are known.
  std::vector<std::string> groups() const;
  int streams() const;

 private:
  // What is known of one pod beside what Coordinate looks at.
  struct Pod {
    int64_t stream = 0;  // 0: none is open
    Send send = {};
    WorkerProgress progress = {};
    bool quotes_failure = false;  // progress is of an earlier process
    absl::Time at = {};
    int64_t weight_bytes_read = 0;
    FabricReport fabric = {};
    StartReport start = {};
    GpusReport gpus = {};
    std::string node_warning = {};
  };
  struct Group {
    GroupState state;
    std::map<int32_t, Pod> pods;
    absl::Time ended_at = {};
    AwakeTime recovering_since = absl::InfiniteDuration();  // infinite: it is not
    int64_t recoveries = 0;
    absl::Duration last_recovery = {};
    RecoveryTimes recovery_times = {};
    std::map<int32_t, int64_t> aborts_by_rank = {};
    int32_t aborts_counted = 0;                 // the last epoch whose end is in aborts_by_rank
    AwakeTime last_open = {};                   // when a stream was last open
    WorkerPhase phase = WorkerPhase::kUnknown;  // of the whole, since phase_since
    AwakeTime phase_since = {};
    std::map<WorkerPhase, absl::Duration> time_in_phase = {};  // of the phases before
  };
  struct Stream {
    std::string group;
    int32_t pod_index = 0;
  };

  // To the leader, if it is on a stream and its phase is `when`.
  void TellLeader(const std::string& name, WorkerPhase when, group::v1::ToMember order)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveEpochAlone(Group& group, int32_t pod_index, int32_t last_epoch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Carries out what Coordinate decides, until it decides nothing. True when anything changed.
  bool Act(const std::string& name, Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CarryOut(const std::string& name, const Decision& decision, Group& group)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void NoteRecovery(Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void NotePhase(Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void CountAbort(Group& group);
  group::v1::Epoch EpochOf(const Group& group, int32_t epoch) const;
  static WorkerProgress ProgressOfAll(const GroupReport& report);
  MemberReport MemberReportOf(const Group& group, int32_t index, const Pod& pod) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Time makes an epoch that no earlier operator has given, without writing any down.
  int32_t Floor() const;

  const Clock* const clock_;
  const std::function<void(const std::string&)> on_change_;
  mutable Mutex mu_;
  std::map<std::string, Group> groups_ ABSL_GUARDED_BY(mu_);
  std::map<int64_t, Stream> streams_ ABSL_GUARDED_BY(mu_);
  AwakeTime now_ ABSL_GUARDED_BY(mu_) = {};
};

}  // namespace rempart::op
