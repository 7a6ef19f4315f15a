// SPDX-License-Identifier: Apache-2.0
#include "operator/group/coordinate.h"

#include <algorithm>
#include <cstdint>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::op {
namespace {

using Kind = Decision::Kind;

bool IsFresh(const Member& member, AwakeTime now) {
  return member.connected && now - member.heard <= kSilence;
}

int32_t PodCount(const GroupState& group) {
  int32_t count = 1;
  for (const auto& [index, member] : group.members) {
    if (member.connected) count = std::max(count, member.pod_count);
  }
  return count;
}

int32_t PodOf(const GroupState& group, int32_t rank) {
  for (const auto& [index, member] : group.members) {
    if (rank / std::max(member.ranks_per_pod, 1) == index) return index;
  }
  return -1;
}

// The process in this member's place takes part in the epoch that runs.
bool TakesPart(const GroupState& group, const Member& member) {
  return member.given_epoch == group.epoch && member.ended_epoch < group.epoch;
}

// Another process has come in the place of one that took part.
bool WasReplaced(const GroupState& group, const Member& member) {
  return member.connected && member.given_epoch < group.epoch;
}

std::string Named(const GroupState& group, int32_t pod) {
  const auto found = group.members.find(pod);
  if (found == group.members.end()) return absl::StrCat("pod ", pod);
  const Member& member = found->second;
  std::string name = member.pod_name.empty() ? absl::StrCat("pod ", pod) : member.pod_name;
  const bool replaced = WasReplaced(group, member) && !member.former_node_name.empty();
  const std::string& node = replaced ? member.former_node_name : member.node_name;
  if (!node.empty()) absl::StrAppend(&name, " on ", node);
  return name;
}

// How long the others have not heard of this pod; zero when any of them has, or says nothing of it.
absl::Duration UnheardByPeers(const GroupState& group, int32_t pod, AwakeTime now) {
  absl::Duration unheard = absl::InfiniteDuration();
  bool has_witness = false;
  for (const auto& [index, member] : group.members) {
    if (index == pod || !IsFresh(member, now) || !TakesPart(group, member)) continue;
    for (const RankWord& word : member.ranks) {
      if (PodOf(group, word.rank) == pod && word.heard_age > absl::ZeroDuration()) {
        unheard = std::min(unheard, word.heard_age);
        has_witness = true;
      }
    }
  }
  return has_witness ? unheard : absl::ZeroDuration();
}

// How long the longest waiting rank of another pod has waited for a rank of this one.
absl::Duration WaitedForByPeers(const GroupState& group, int32_t pod, AwakeTime now) {
  absl::Duration waited = absl::ZeroDuration();
  for (const auto& [index, member] : group.members) {
    if (index == pod || !IsFresh(member, now) || !TakesPart(group, member)) continue;
    for (const RankWord& word : member.ranks) {
      if (PodOf(group, word.rank) != index) continue;  // hearsay
      for (const int32_t rank : word.waiting_for) {
        if (PodOf(group, rank) == pod) waited = std::max(waited, word.activity_age);
      }
    }
  }
  return waited;
}

std::set<int32_t> GonePods(const GroupState& group, AwakeTime now) {
  std::set<int32_t> gone;
  for (const auto& [index, member] : group.members) {
    const bool said_so = member.ended_epoch >= group.epoch;
    if (WasReplaced(group, member) || (!said_so && !IsFresh(member, now))) gone.insert(index);
  }
  return gone;
}

// Ranks that members hold for the cause of the end of this epoch.
std::set<int32_t> NamedRanks(const GroupState& group) {
  std::map<int32_t, int> votes;
  int most = 0;
  for (const auto& [index, member] : group.members) {
    if (member.ended_epoch != group.epoch || member.ended_blamed_rank < 0) continue;
    if (PodOf(group, member.ended_blamed_rank) == index) continue;
    most = std::max(most, ++votes[member.ended_blamed_rank]);
  }
  std::set<int32_t> ranks;
  for (const auto& [rank, count] : votes) {
    if (count == most) ranks.insert(rank);
  }
  return ranks;
}

// Who they are is kept: the same place and name will soon be another pod's.
void NamePods(const GroupState& group, const std::set<int32_t>& pods, Ending& ending) {
  ending.blamed_pods.assign(pods.begin(), pods.end());
  ending.blamed_pod_uids.clear();
  for (const int32_t pod : pods) {
    std::string& uid = ending.blamed_pod_uids.emplace_back();
    const auto found = group.members.find(pod);
    if (found == group.members.end()) continue;
    const Member& member = found->second;
    uid = WasReplaced(group, member) ? member.former_pod_uid : member.pod_uid;
  }
}

void BlamePods(const GroupState& group, const std::set<int32_t>& pods, Evidence evidence,
               AwakeTime now, Ending& ending) {
  ending.evidence = evidence;
  NamePods(group, pods, ending);
  ending.blamed_ranks.clear();
  for (const int32_t pod : pods) {
    const auto found = group.members.find(pod);
    const int32_t ranks = found == group.members.end() ? 1 : found->second.ranks_per_pod;
    ending.blamed_ranks.push_back(pod * std::max(ranks, 1));
    if (found != group.members.end() && !WasReplaced(group, found->second)) {
      ending.detection = std::max(ending.detection, now - found->second.heard);
    }
  }
}

void BlameRanks(const GroupState& group, const std::set<int32_t>& ranks, Evidence evidence,
                Ending& ending) {
  ending.evidence = evidence;
  ending.blamed_ranks.assign(ranks.begin(), ranks.end());
  std::set<int32_t> pods;
  for (const int32_t rank : ranks) pods.insert(PodOf(group, rank));
  NamePods(group, pods, ending);
}

std::string NamedAll(const GroupState& group, const std::set<int32_t>& pods) {
  std::vector<std::string> names;
  for (const int32_t pod : pods) names.push_back(Named(group, pod));
  return absl::StrJoin(names, ", ");
}

Decision Abort(const GroupState& group, AwakeTime now, Ending ending) {
  ending.epoch = group.epoch;
  ending.at = now;
  return {Kind::kAbort, group.epoch, 0, std::move(ending)};
}

// Members have left the epoch by themselves, or were replaced: it is over.
Decision AbortOfLeft(const GroupState& group, AwakeTime now, const std::string& said) {
  Ending ending;
  const std::set<int32_t> gone = GonePods(group, now);
  const std::set<int32_t> ranks = NamedRanks(group);
  if (!gone.empty()) {
    BlamePods(group, gone, Evidence::kGone, now, ending);
    ending.reason = absl::StrCat("lost ", NamedAll(group, gone));
  } else {
    BlameRanks(group, ranks, ranks.empty() ? Evidence::kNone : Evidence::kWaitedFor, ending);
    const std::set<int32_t> pods(ending.blamed_pods.begin(), ending.blamed_pods.end());
    ending.reason = ranks.empty() ? said : absl::StrCat(NamedAll(group, pods), ": ", said);
  }
  return Abort(group, now, std::move(ending));
}

// Ranks that wait for others, and for how long; `computing` of those who are waited for.
struct Wait {
  std::map<int32_t, int> votes;  // by rank that is waited for
  std::set<int32_t> waiting;
  absl::Duration longest = {};
};

Wait WaitingRanks(const GroupState& group, AwakeTime now, absl::Duration bound) {
  Wait wait;
  for (const auto& [index, member] : group.members) {
    if (!IsFresh(member, now) || !TakesPart(group, member)) continue;
    for (const RankWord& word : member.ranks) {
      if (PodOf(group, word.rank) != index || word.waiting_for.empty()) continue;
      if (word.activity_age < bound) continue;
      wait.waiting.insert(word.rank);
      wait.longest = std::max(wait.longest, word.activity_age);
      for (const int32_t rank : word.waiting_for) ++wait.votes[rank];
    }
  }
  return wait;
}

// Ranks that come late because they wait themselves, in the end for one that does not wait: a stage
// of a pipeline for those before it. Only who was just heard counts: what a frozen member said last
// excuses it of nothing.
std::set<int32_t> ExcusedRanks(const GroupState& group, AwakeTime now) {
  std::map<int32_t, const std::vector<int32_t>*> waits;
  for (const auto& [index, member] : group.members) {
    if (!TakesPart(group, member) || !member.connected || now - member.heard > kSilence / 2)
      continue;
    for (const RankWord& word : member.ranks) {
      if (PodOf(group, word.rank) != index || word.waiting_for.empty()) continue;
      waits[word.rank] = &word.waiting_for;
    }
  }
  std::set<int32_t> excused;
  for (size_t before = SIZE_MAX; before != excused.size();) {
    before = excused.size();
    for (const auto& [rank, others] : waits) {
      const bool ends = std::any_of(others->begin(), others->end(), [&](int32_t other) {
        return waits.count(other) == 0 || excused.count(other) > 0;
      });
      if (ends) excused.insert(rank);
    }
  }
  return excused;
}

// A rank that computes may take its time.
bool Computes(const GroupState& group, int32_t rank, AwakeTime now) {
  const auto found = group.members.find(PodOf(group, rank));
  if (found == group.members.end() || !IsFresh(found->second, now)) return false;
  for (const RankWord& word : found->second.ranks) {
    if (word.rank == rank) return word.activity == "compute";
  }
  return false;
}

Decision AbortOfStuck(const GroupState& group, AwakeTime now) {
  const std::set<int32_t> excused = ExcusedRanks(group, now);
  for (const absl::Duration bound : {kComputeBound, kCollectiveBound}) {
    const Wait wait = WaitingRanks(group, now, bound);
    std::set<int32_t> blamed;
    int most = 0;
    for (const auto& [rank, votes] : wait.votes) {
      if (excused.count(rank) > 0) continue;
      if (bound == kCollectiveBound && Computes(group, rank, now)) continue;
      if (votes > most) blamed.clear();
      most = std::max(most, votes);
      if (votes == most) blamed.insert(rank);
    }
    if (blamed.empty()) continue;
    Ending ending;
    ending.detection = wait.longest;
    const std::string waited = absl::StrCat(absl::ToInt64Milliseconds(wait.longest), " ms");
    const bool mutual = std::all_of(blamed.begin(), blamed.end(),
                                    [&](int32_t rank) { return wait.waiting.count(rank) > 0; });
    if (mutual) {
      ending.reason = absl::StrCat("ranks ", absl::StrJoin(blamed, " and "), " wait for each other",
                                   " since ", waited, ": the link between them is down");
      return Abort(group, now, std::move(ending));
    }
    BlameRanks(group, blamed, Evidence::kWaitedFor, ending);
    ending.reason =
        absl::StrCat("the others have waited ", waited, " for rank ", absl::StrJoin(blamed, ", "),
                     " (", Named(group, ending.blamed_pods[0]), ")");
    return Abort(group, now, std::move(ending));
  }
  return {};
}

// Silent to the operator; and, when the group serves, to its peers.
Decision AbortOfSilent(const GroupState& group, AwakeTime now) {
  std::set<int32_t> silent;
  for (int32_t pod = 0; pod < PodCount(group); ++pod) {
    const auto found = group.members.find(pod);
    const AwakeTime heard =
        std::max(group.since, found == group.members.end() ? AwakeTime() : found->second.heard);
    if (now - heard <= kSilence) continue;
    if (group.gone_on && UnheardByPeers(group, pod, now) <= kSilence &&
        WaitedForByPeers(group, pod, now) <= kSilence * 3 / 4) {
      continue;
    }
    silent.insert(pod);
  }
  if (silent.empty()) return {};
  Ending ending;
  BlamePods(group, silent, Evidence::kSilent, now, ending);
  ending.reason = absl::StrCat("nothing heard of ", NamedAll(group, silent), " for ",
                               absl::ToInt64Milliseconds(ending.detection), " ms");
  return Abort(group, now, std::move(ending));
}

Decision AbortOfSlowFormation(const GroupState& group, AwakeTime now) {
  if (group.gone_on || now - group.since <= kConnectBound) return {};
  std::set<int32_t> behind;
  bool any_ahead = false;
  for (const auto& [index, member] : group.members) {
    const bool is_behind = member.epoch != group.epoch || member.phase == WorkerPhase::kStarting ||
                           member.phase == WorkerPhase::kConnecting;
    is_behind ? void(behind.insert(index)) : void(any_ahead = true);
  }
  if (behind.empty()) return {};
  Ending ending;
  ending.reason =
      absl::StrCat("not linked to each other after ", absl::ToInt64Seconds(kConnectBound),
                   " s: ", NamedAll(group, behind));
  if (any_ahead) BlamePods(group, behind, Evidence::kWaitedFor, now, ending);
  return Abort(group, now, std::move(ending));
}

// Has been told to go on, by whichever operator.
bool HasGoneOn(const Member& member, int32_t epoch) {
  return member.epoch == epoch &&
         (member.phase == WorkerPhase::kWarmingUp || member.phase == WorkerPhase::kReady ||
          member.phase == WorkerPhase::kDraining);
}

bool AnyHasGoneOn(const GroupState& group, int32_t epoch) {
  return std::any_of(group.members.begin(), group.members.end(),
                     [&](const auto& entry) { return HasGoneOn(entry.second, epoch); });
}

// A member whose stream broke just when all were told to go on.
Decision GoOfLate(const GroupState& group) {
  for (const auto& [index, member] : group.members) {
    if (member.connected && member.epoch == group.epoch && member.phase == WorkerPhase::kLoaded &&
        member.told_go < group.epoch) {
      return {Kind::kGo, group.epoch, index, {}};
    }
  }
  return {};
}

Decision CoordinateRunning(const GroupState& group, AwakeTime now) {
  for (const auto& [index, member] : group.members) {
    if (member.ended_epoch >= group.epoch) return AbortOfLeft(group, now, member.ended_reason);
    if (WasReplaced(group, member)) return AbortOfLeft(group, now, "");
    if (member.connected && member.phase == WorkerPhase::kFailed) {
      Ending ending;
      BlamePods(group, {index}, Evidence::kGone, now, ending);
      ending.reason = absl::StrCat(Named(group, index), " failed: ", member.message);
      return Abort(group, now, std::move(ending));
    }
  }
  if (Decision silent = AbortOfSilent(group, now); silent.kind != Kind::kNothing) return silent;
  if (Decision stuck = AbortOfStuck(group, now); stuck.kind != Kind::kNothing) return stuck;
  if (Decision slow = AbortOfSlowFormation(group, now); slow.kind != Kind::kNothing) return slow;
  if (group.gone_on) return GoOfLate(group);
  if (AnyHasGoneOn(group, group.epoch)) return {Kind::kGo, group.epoch, -1, {}};
  for (int32_t pod = 0; pod < PodCount(group); ++pod) {
    const auto found = group.members.find(pod);
    const bool loaded = found != group.members.end() && IsFresh(found->second, now) &&
                        found->second.epoch == group.epoch &&
                        found->second.phase == WorkerPhase::kLoaded;
    if (!loaded) return {};
  }
  return {Kind::kGo, group.epoch, -1, {}};
}

// Why no epoch can begin; empty: it can.
std::string Obstacle(const GroupState& group, AwakeTime now) {
  const int32_t count = PodCount(group);
  std::set<std::string> hashes;
  std::vector<std::string> missing;
  for (int32_t pod = 0; pod < count; ++pod) {
    const auto found = group.members.find(pod);
    if (found == group.members.end() || !IsFresh(found->second, now)) {
      missing.push_back(Named(group, pod));
      continue;
    }
    hashes.insert(found->second.config_hash);
    const bool waits = found->second.phase == WorkerPhase::kStarting && found->second.epoch == 0 &&
                       found->second.pod_count == count;
    if (!waits) missing.push_back(Named(group, pod));
  }
  if (!missing.empty()) {
    return absl::StrCat("waits for ", absl::StrJoin(missing, ", "), " (", count - missing.size(),
                        " of ", count, " pods are there)");
  }
  if (hashes.size() > 1) return "waits until all pods run the same configuration";
  if (now < group.not_before) return "pauses after a formation that failed";
  return "";
}

Decision CoordinateIdle(const GroupState& group, AwakeTime now, int32_t floor) {
  int32_t last = std::max(group.epoch, floor - 1);
  int32_t running = 0;
  for (const auto& [index, member] : group.members) {
    last = std::max({last, member.given_epoch, member.ended_epoch});
    if (member.connected && member.epoch > std::max(group.epoch, member.ended_epoch)) {
      running = std::max(running, member.epoch);
    }
  }
  if (running > 0) return {Kind::kAdopt, running, 0, {}};
  if (group.ending.epoch == group.epoch && group.ending.evidence < Evidence::kGone &&
      group.epoch > 0) {
    std::set<int32_t> gone;
    for (const auto& [index, member] : group.members) {
      if (member.ended_epoch < group.epoch && (!member.connected || WasReplaced(group, member))) {
        gone.insert(index);
      }
    }
    // Who was silent, and is gone now, has been named already.
    const auto& blamed = group.ending.blamed_pods;
    const bool known = group.ending.evidence == Evidence::kSilent &&
                       std::includes(blamed.begin(), blamed.end(), gone.begin(), gone.end());
    if (!gone.empty() && !known) {
      Decision decision{Kind::kReblame, group.epoch, 0, group.ending};
      BlamePods(group, gone, Evidence::kGone, now, decision.ending);
      decision.ending.detection = group.ending.detection;
      decision.ending.reason = absl::StrCat("lost ", NamedAll(group, gone));
      return decision;
    }
  }
  if (!Obstacle(group, now).empty()) return {};
  return {Kind::kForm, last + 1, 0, {}};
}

}  // namespace

Decision Coordinate(const GroupState& group, AwakeTime now, int32_t floor) {
  // Whoever is in an epoch that is over, or never was, is told so once.
  for (const auto& [index, member] : group.members) {
    const bool is_over =
        member.epoch < group.epoch || (member.epoch == group.epoch && !group.running);
    if (member.connected && member.epoch > member.told_over && is_over) {
      return {Kind::kFence, member.epoch, index, {}};
    }
  }
  return group.running ? CoordinateRunning(group, now) : CoordinateIdle(group, now, floor);
}

void Apply(const Decision& decision, AwakeTime now, GroupState& group) {
  switch (decision.kind) {
    case Kind::kNothing:
      return;
    case Kind::kForm:
      for (auto& [index, member] : group.members) member.given_epoch = decision.epoch;
      [[fallthrough]];
    case Kind::kAdopt:
      group.epoch = decision.epoch;
      group.running = true;
      group.gone_on = decision.kind == Kind::kAdopt && AnyHasGoneOn(group, decision.epoch);
      group.since = now;
      return;
    case Kind::kGo:
      if (!group.gone_on) group.since = now;
      group.gone_on = true;
      group.formations_failed = 0;
      for (auto& [index, member] : group.members) {
        const bool is_told = decision.pod_index < 0 || decision.pod_index == index;
        if (is_told && member.connected) member.told_go = decision.epoch;
      }
      return;
    case Kind::kAbort:
      group.running = false;
      group.ending = decision.ending;
      ++group.epochs_ended;
      if (!group.gone_on) {
        const int doublings = std::min(group.formations_failed++, 10);
        group.not_before = now + std::min(kFirstPause * (1 << doublings), kLongestPause);
      }
      group.gone_on = false;
      for (auto& [index, member] : group.members) {
        if (member.connected) member.told_over = std::max(member.told_over, decision.epoch);
      }
      return;
    case Kind::kFence:
      group.members.at(decision.pod_index).told_over = decision.epoch;
      return;
    case Kind::kReblame:
      group.ending = decision.ending;
      return;
  }
}

std::string WaitsFor(const GroupState& group, AwakeTime now) {
  return group.running ? "" : Obstacle(group, now);
}

}  // namespace rempart::op
