// SPDX-License-Identifier: Apache-2.0
#include "operator/streams/join_registry.h"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/log.h"

namespace rempart::op {
namespace {

using group::v1::Progress;
using group::v1::ToMember;

// How long a restarted worker may be starting or loading while its last failure is still quoted: an
// invalid file is found sooner than this.
constexpr absl::Duration kQuoteFailure = absl::Seconds(10);
// More than this between two ticks, and the process was not awake.
constexpr absl::Duration kLongestTick = absl::Milliseconds(250);
// A group without a stream is forgotten after this.
constexpr absl::Duration kForget = absl::Minutes(10);
constexpr size_t kMostText = 512;  // of a member's, in a status
constexpr int kMaxDecisions = 64;
constexpr int kKeyBytes = 32;

WorkerPhase PhaseOf(Progress::Phase phase) {
  switch (phase) {
    case Progress::STARTING:
      return WorkerPhase::kStarting;
    case Progress::CONNECTING:
      return WorkerPhase::kConnecting;
    case Progress::LOADING:
      return WorkerPhase::kLoading;
    case Progress::LOADED:
      return WorkerPhase::kLoaded;
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
  progress.requests = wire.requests();
  progress.tensor_sizes.assign(wire.tensor_sizes().begin(), wire.tensor_sizes().end());
  progress.rank_memory = {wire.rank_memory().weights_mib(), wire.rank_memory().workspace_mib(),
                          wire.rank_memory().kv_cache_mib(), wire.rank_memory().reserve_mib()};
  for (const auto& rank : wire.ranks()) {
    if (rank.heard_age_ms() > 0) continue;  // another pod's
    progress.step = std::max(progress.step, Clamped(rank.step()));
    progress.last_step_age_seconds =
        std::max(progress.last_step_age_seconds, Clamped(rank.last_step_age_ms() / 1000));
  }
  return progress;
}

RankWord WordFrom(const group::v1::RankProgress& wire) {
  RankWord word;
  word.rank = wire.rank();
  word.step = wire.step();
  word.step_age = absl::Milliseconds(wire.last_step_age_ms());
  word.activity = wire.activity();
  word.activity_age = absl::Milliseconds(wire.activity_age_ms());
  word.waiting_for.assign(wire.waiting_for_ranks().begin(), wire.waiting_for_ranks().end());
  word.heard_age = absl::Milliseconds(wire.heard_age_ms());
  return word;
}

bool IsBeforeWeights(WorkerPhase phase) {
  return phase == WorkerPhase::kUnknown || phase == WorkerPhase::kStarting ||
         phase == WorkerPhase::kConnecting || phase == WorkerPhase::kLoading;
}

EndingReport ReportOf(const Ending& ending, const GroupState& state, absl::Time at) {
  EndingReport report;
  report.epoch = ending.epoch;
  report.reason = ending.reason;
  report.blamed_ranks = ending.blamed_ranks;
  for (size_t i = 0; i < ending.blamed_pods.size(); ++i) {
    const auto found = state.members.find(ending.blamed_pods[i]);
    if (found == state.members.end()) continue;
    report.blamed_pods.push_back(found->second.pod_name);
    report.blamed_pod_uids.push_back(ending.blamed_pod_uids[i]);
  }
  report.at = at;
  report.detection = ending.detection;
  return report;
}

}  // namespace

int32_t JoinRegistry::Floor() const { return Clamped(absl::ToUnixSeconds(clock_->WallNow())); }

void JoinRegistry::GiveEpochAlone(Group& group, int32_t pod_index, int32_t last_epoch) {
  Member& member = group.state.members.at(pod_index);
  const int32_t epoch = last_epoch > 0 ? last_epoch : std::max(group.state.epoch + 1, Floor());
  group.state.epoch = member.given_epoch = epoch;
  ToMember order;
  order.mutable_epoch()->set_epoch(epoch);
  order.mutable_epoch()->add_addresses(member.address);
  group.pods.at(pod_index).send(std::move(order));
  ToMember go;
  go.mutable_go()->set_epoch(epoch);
  group.pods.at(pod_index).send(std::move(go));
}

void JoinRegistry::Joined(int64_t stream, const group::v1::Identity& identity, Send send) {
  const std::string& name = identity.group_name();
  {
    MutexLock lock(&mu_);
    streams_[stream] = {name, identity.pod_index()};
    const auto [found, is_new] = groups_.try_emplace(name);
    Group& group = found->second;
    if (is_new) group.phase_since = now_;
    group.last_open = now_;
    Pod& pod = group.pods[identity.pod_index()];
    pod.stream = stream;
    pod.send = std::move(send);
    pod.at = clock_->Now();
    pod.node_warning.clear();
    pod.quotes_failure = pod.progress.phase == WorkerPhase::kFailed;
    if (!pod.quotes_failure) {
      pod.progress = {};
      if (identity.last_epoch() == 0) pod.gpus = {};  // another process
    }
    const Member former = group.state.members[identity.pod_index()];
    Member& member = group.state.members[identity.pod_index()] = {};
    member.pod_index = identity.pod_index();
    member.pod_name = identity.pod_name();
    member.pod_uid = identity.pod_uid();
    member.former_pod_uid = former.pod_uid;
    member.former_node_name = former.node_name;
    member.node_name = identity.node_name();
    member.address = identity.address();
    member.data_address = identity.data_address();
    member.config_hash = identity.config_hash();
    member.pod_count = std::max(1, identity.pod_count());
    member.ranks_per_pod = std::max(1, identity.ranks_per_pod());
    member.connected = true;
    member.heard = now_;
    member.given_epoch = identity.last_epoch();
    // A survivor says itself in which epoch it is; whatever it was told may not have reached it.
    member.told_over = identity.last_epoch() > 0 ? 0 : former.told_over;
    if (member.pod_count == 1) GiveEpochAlone(group, identity.pod_index(), identity.last_epoch());
    Act(name, group);
    NotePhase(group);
  }
  on_change_(name);
}

void JoinRegistry::Progressed(int64_t stream, const Progress& wire) {
  std::string changed;
  {
    MutexLock lock(&mu_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return;
    const std::string& name = found->second.group;
    Group& group = groups_[name];
    Pod& pod = group.pods[found->second.pod_index];
    if (pod.stream != stream) return;
    Member& member = group.state.members.at(found->second.pod_index);
    member.heard = group.last_open = now_;
    member.phase = PhaseOf(wire.phase());
    member.epoch = wire.epoch();
    member.ended_epoch = wire.ended_epoch();
    member.ended_reason = wire.ended_reason();
    member.ended_blamed_rank = wire.ended_blamed_rank();
    member.message = wire.message();
    member.ranks.clear();
    for (const auto& rank : wire.ranks()) member.ranks.push_back(WordFrom(rank));
    pod.weight_bytes_read = wire.weight_bytes_read();
    pod.fabric = {wire.fabric().all_reduce_microseconds(), wire.fabric().mib_per_second(),
                  wire.fabric().microseconds_per_token(), wire.fabric().one_shot_kib()};
    pod.start.clear();
    for (const auto& part : wire.start()) pod.start.emplace_back(part.part(), part.milliseconds());

    const absl::Time now = clock_->Now();
    if (std::string warning = wire.node_warning().substr(0, kMostText);
        pod.node_warning != warning) {
      changed = name;
      pod.node_warning = std::move(warning);
    }
    const bool quotes =
        pod.quotes_failure && IsBeforeWeights(member.phase) && now - pod.at < kQuoteFailure;
    if (!quotes) {
      WorkerProgress progress = FromWire(wire);
      pod.quotes_failure = false;
      // That a drained leader has nothing left is news, too.
      const bool same = progress.phase == pod.progress.phase &&
                        progress.message == pod.progress.message &&
                        (progress.requests == 0) == (pod.progress.requests == 0);
      if (!same) changed = name;
      pod.progress = std::move(progress);
      pod.at = now;
    }
    if (member.pod_count > 1 && Act(name, group)) changed = name;
    NoteRecovery(group);
    NotePhase(group);
  }
  if (!changed.empty()) on_change_(changed);
}

void JoinRegistry::ToldGpus(int64_t stream, const group::v1::GpuReport& wire) {
  GpusReport gpus = GpusFromWire(wire);
  std::string name;
  {
    MutexLock lock(&mu_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return;
    Pod& pod = groups_[found->second.group].pods[found->second.pod_index];
    if (pod.stream != stream || pod.gpus == gpus) return;
    name = found->second.group;
    pod.gpus = std::move(gpus);
  }
  on_change_(name);
}

void JoinRegistry::TellLeader(const std::string& name, WorkerPhase when, ToMember order) {
  const auto group = groups_.find(name);
  if (group == groups_.end()) return;
  const auto leader = group->second.pods.find(0);
  if (leader == group->second.pods.end() || leader->second.stream == 0) return;
  if (leader->second.progress.phase == when) leader->second.send(std::move(order));
}

void JoinRegistry::Drain(const std::string& name, absl::Duration deadline) {
  ToMember order;
  order.mutable_drain()->set_deadline_seconds(Clamped(absl::ToInt64Seconds(deadline)));
  MutexLock lock(&mu_);
  TellLeader(name, WorkerPhase::kReady, std::move(order));
}

void JoinRegistry::Resume(const std::string& name) {
  ToMember order;
  order.mutable_resume();
  MutexLock lock(&mu_);
  TellLeader(name, WorkerPhase::kDraining, std::move(order));
}

void JoinRegistry::Left(int64_t stream) {
  std::string changed;
  {
    MutexLock lock(&mu_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return;
    const Stream left = found->second;
    streams_.erase(found);
    const auto group = groups_.find(left.group);
    if (group == groups_.end()) return;
    Pod& pod = group->second.pods[left.pod_index];
    if (pod.stream != stream) return;
    pod.stream = 0;
    pod.send = {};
    if (pod.progress.phase != WorkerPhase::kFailed) pod.progress = {};
    group->second.state.members.at(left.pod_index).connected = false;
    Act(left.group, group->second);
    NotePhase(group->second);
    changed = left.group;
  }
  on_change_(changed);
}

void JoinRegistry::Tick(absl::Duration elapsed) {
  std::vector<std::string> changed;
  {
    MutexLock lock(&mu_);
    now_ += std::min(elapsed, kLongestTick);
    for (auto it = groups_.begin(); it != groups_.end();) {
      auto& [name, group] = *it;
      const bool has_stream = std::any_of(group.pods.begin(), group.pods.end(),
                                          [](const auto& pod) { return pod.second.stream != 0; });
      if (has_stream) group.last_open = now_;
      if (now_ - group.last_open > kForget) {
        it = groups_.erase(it);
        continue;
      }
      if (Act(name, group)) {
        NotePhase(group);
        changed.push_back(name);
      }
      ++it;
    }
  }
  for (const std::string& name : changed) on_change_(name);
}

bool JoinRegistry::Act(const std::string& name, Group& group) {
  const bool of_several =
      std::any_of(group.state.members.begin(), group.state.members.end(),
                  [](const auto& member) { return member.second.pod_count > 1; });
  if (!of_several) return false;
  bool acted = false;
  for (int i = 0; i < kMaxDecisions; ++i) {
    const Decision decision = Coordinate(group.state, now_, Floor());
    if (decision.kind == Decision::Kind::kNothing) break;
    Apply(decision, now_, group.state);
    CarryOut(name, decision, group);
    acted = true;
  }
  return acted;
}

void JoinRegistry::CarryOut(const std::string& name, const Decision& decision, Group& group) {
  const auto send_to_all = [&](const ToMember& order) {
    for (auto& [index, pod] : group.pods) {
      if (pod.stream != 0) pod.send(order);
    }
  };
  const auto send_to = [&](int32_t index, const ToMember& order) {
    index < 0 ? send_to_all(order) : group.pods.at(index).send(order);
  };
  ToMember order;
  switch (decision.kind) {
    case Decision::Kind::kNothing:
      return;
    case Decision::Kind::kForm: {
      CountAbort(group);
      LogInfo("group", "epoch begins", {{"group", name}, {"epoch", decision.epoch}});
      *order.mutable_epoch() = EpochOf(group, decision.epoch);
      return send_to_all(order);
    }
    case Decision::Kind::kAdopt:
      LogInfo("group", "epoch goes on", {{"group", name}, {"epoch", decision.epoch}});
      return;
    case Decision::Kind::kGo:
      order.mutable_go()->set_epoch(decision.epoch);
      return send_to(decision.pod_index, order);
    case Decision::Kind::kAbort:
      group.ended_at = clock_->Now();
      if (group.recovering_since == absl::InfiniteDuration()) group.recovering_since = now_;
      [[fallthrough]];
    case Decision::Kind::kReblame:
      LogWarning("group", "epoch is over",
                 {{"group", name},
                  {"epoch", decision.ending.epoch},
                  {"reason", decision.ending.reason},
                  {"blamed_ranks", absl::StrJoin(decision.ending.blamed_ranks, ",")},
                  {"detection_ms", absl::ToInt64Milliseconds(decision.ending.detection)}});
      if (decision.kind == Decision::Kind::kReblame) return;
      order.mutable_abort()->set_epoch(decision.ending.epoch);
      order.mutable_abort()->set_reason(decision.ending.reason);
      order.mutable_abort()->set_blamed_rank(
          decision.ending.blamed_ranks.empty() ? -1 : decision.ending.blamed_ranks[0]);
      return send_to_all(order);
    case Decision::Kind::kFence:
      order.mutable_abort()->set_epoch(decision.epoch);
      order.mutable_abort()->set_reason("the group has gone on without this member");
      order.mutable_abort()->set_blamed_rank(-1);
      return send_to(decision.pod_index, order);
  }
}

group::v1::Epoch JoinRegistry::EpochOf(const Group& group, int32_t epoch) const {
  group::v1::Epoch message;
  message.set_epoch(epoch);
  std::string key(kKeyBytes, '\0');
  CHECK_EQ(RAND_bytes(reinterpret_cast<unsigned char*>(key.data()), kKeyBytes), 1);
  message.set_key(std::move(key));
  for (const auto& [index, member] : group.state.members) {
    if (!member.connected) continue;
    message.add_addresses(member.address);
    message.add_data_addresses(member.data_address);
  }
  return message;
}

void RecoveryTimes::Add(absl::Duration took) {
  const double seconds = absl::ToDoubleSeconds(took);
  ++count;
  sum_seconds += seconds;
  for (size_t i = 0; i < kBounds.size(); ++i) at_most[i] += seconds <= kBounds[i] ? 1 : 0;
}

void JoinRegistry::CountAbort(Group& group) {
  const Ending& ending = group.state.ending;
  if (ending.epoch <= group.aborts_counted) return;
  group.aborts_counted = ending.epoch;
  ++group.aborts_by_rank[ending.blamed_ranks.empty() ? -1 : ending.blamed_ranks[0]];
}

// A group without a leader's word is in no phase; a member that has failed speaks for all.
void JoinRegistry::NotePhase(Group& group) {
  WorkerPhase phase = WorkerPhase::kUnknown;
  for (const auto& [index, pod] : group.pods) {
    if (index == 0) phase = pod.progress.phase;
    if (pod.progress.phase != WorkerPhase::kFailed) continue;
    phase = WorkerPhase::kFailed;
    break;
  }
  if (phase == group.phase) return;
  group.time_in_phase[group.phase] += now_ - group.phase_since;
  group.phase = phase;
  group.phase_since = now_;
}

void JoinRegistry::NoteRecovery(Group& group) {
  if (group.recovering_since == absl::InfiniteDuration()) return;
  const auto leader = group.state.members.find(0);
  if (leader == group.state.members.end() || leader->second.phase != WorkerPhase::kReady ||
      leader->second.epoch <= group.state.ending.epoch) {
    return;
  }
  ++group.recoveries;
  group.last_recovery = now_ - group.recovering_since;
  group.recovery_times.Add(group.last_recovery);
  group.recovering_since = absl::InfiniteDuration();
}

GroupReport JoinRegistry::Report(const std::string& name) const {
  GroupReport report;
  MutexLock lock(&mu_);
  const auto found = groups_.find(name);
  if (found == groups_.end()) return report;
  const Group& group = found->second;
  report.epoch = group.state.epoch;
  report.epochs_ended = group.state.epochs_ended;
  report.recoveries = group.recoveries;
  report.last_recovery = group.last_recovery;
  report.recovery_times = group.recovery_times;
  report.aborts_by_rank = group.aborts_by_rank;
  report.time_in_phase = group.time_in_phase;
  report.time_in_phase[group.phase] += now_ - group.phase_since;
  report.last_ending = ReportOf(group.state.ending, group.state, group.ended_at);
  for (const auto& [index, pod] : group.pods) {
    report.members.push_back(MemberReportOf(group, index, pod));
    if (group.state.members.at(index).connected) {
      report.pod_count = std::max(report.pod_count, group.state.members.at(index).pod_count);
    }
  }
  if (report.pod_count > 1) report.waits_for = WaitsFor(group.state, now_);
  const auto leader = group.pods.find(0);
  if (leader != group.pods.end()) {
    report.pod_name = group.state.members.at(0).pod_name;
    report.address = group.state.members.at(0).address;
    report.at = leader->second.at;
    report.progress = leader->second.progress;
    report.progress.config_hash = group.state.members.at(0).config_hash;
    report.fabric = leader->second.fabric;
    report.start = leader->second.start;
  }
  if (report.pod_count > 1) report.progress = ProgressOfAll(report);
  return report;
}

WorkerProgress JoinRegistry::ProgressOfAll(const GroupReport& report) {
  WorkerProgress all = report.progress;
  all.bytes_done = all.bytes_total = 0;
  for (const MemberReport& member : report.members) {
    all.bytes_done += member.progress.bytes_done;
    all.bytes_total += member.progress.bytes_total;
    if (member.progress.phase == WorkerPhase::kFailed) return member.progress;
  }
  // A leader that is frozen or cut off still has its last word in place; the epoch is over all the
  // same.
  const bool epoch_runs = report.epoch > report.last_ending.epoch;
  if (!epoch_runs && all.phase != WorkerPhase::kUnknown && all.phase != WorkerPhase::kDraining) {
    all.phase = WorkerPhase::kStarting;
  }
  switch (all.phase) {
    case WorkerPhase::kStarting:
      all.message = report.waits_for;
      break;
    case WorkerPhase::kLoaded:  // others still load
      all.phase = WorkerPhase::kLoading;
      break;
    default:
      break;
  }
  return all;
}

MemberReport JoinRegistry::MemberReportOf(const Group& group, int32_t index, const Pod& pod) const {
  const Member& member = group.state.members.at(index);
  MemberReport report;
  report.pod_index = index;
  report.pod_name = member.pod_name;
  report.node_name = member.node_name;
  report.address = member.address;
  report.config_hash = member.config_hash;
  report.connected = member.connected;
  report.silent_for = now_ - member.heard;
  report.progress = pod.progress;
  report.progress.config_hash = member.config_hash;
  report.epoch = member.epoch;
  report.weight_bytes_read = pod.weight_bytes_read;
  report.gpus = pod.gpus;
  report.node_warning = pod.node_warning;
  const auto& blamed = group.state.ending.blamed_pods;
  report.blamed = member.epoch <= group.state.ending.epoch &&
                  member.given_epoch <= group.state.ending.epoch &&
                  std::find(blamed.begin(), blamed.end(), index) != blamed.end();
  for (const RankWord& word : member.ranks) {
    if (word.heard_age > absl::ZeroDuration()) continue;
    report.ranks.push_back(
        {word.rank, word.step, word.step_age, word.activity, word.activity_age, word.waiting_for});
  }
  return report;
}

std::vector<std::string> JoinRegistry::groups() const {
  std::vector<std::string> names;
  MutexLock lock(&mu_);
  for (const auto& [name, group] : groups_) names.push_back(name);
  return names;
}

int JoinRegistry::streams() const {
  MutexLock lock(&mu_);
  return static_cast<int>(streams_.size());
}

}  // namespace rempart::op
