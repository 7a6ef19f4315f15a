// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/rollout.h"

#include <algorithm>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "operator/plan/drain.h"
#include "operator/plan/gpu_memory.h"
#include "operator/plan/group_plan.h"
#include "operator/plan/status.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::RolloutStatus;

constexpr int32_t kProgressDeadlineSeconds = 600;
constexpr char kOutdated[] = "its configuration is outdated";

bool SpeaksOf(const WorkerProgress& progress, const std::string& config_hash) {
  return progress.config_hash.empty() || progress.config_hash == config_hash;
}

// Every pod is there and was made from the configuration, and so was the process that speaks for
// them: words on Join and pods are seen at different times.
bool RunsWhole(const GroupObservation& seen, const GroupPlan& group) {
  if (group.config_hash.empty()) return true;  // child processes, not pods
  return SpeaksOf(seen.progress, group.config_hash) &&
         static_cast<int32_t>(seen.pods.size()) == group.pod_count &&
         std::all_of(seen.pods.begin(), seen.pods.end(), [&](const PodObservation& pod) {
           return pod.config_hash == group.config_hash && !pod.deleting;
         });
}

// A group, in both configurations that it may run.
struct Candidate {
  int32_t index = 0;
  const GroupObservation* seen = nullptr;  // null, or gone: it does not exist
  GroupPlan target;
  std::optional<GroupPlan> kept;  // with the last good configuration, where that is another
  bool serves = false;

  bool exists() const { return seen != nullptr && seen->exists; }
  bool old() const { return exists() && seen->config_hash != target.config_hash; }
  // Its StatefulSet has the new template already; its pods are on their way out.
  bool in_turn() const { return old() && seen->set_config_hash == target.config_hash; }
  // Its StatefulSet lets pods go as soon as it has the template.
  bool shrinks() const {
    return old() && !in_turn() && target.pod_count < static_cast<int32_t>(seen->pods.size());
  }
  bool settled() const { return exists() && !old() && serves && RunsWhole(*seen, target); }
};

bool IsRefusedByWorker(const WorkerProgress& progress) {
  static const std::set<std::string> kFinal = {
      "InvalidConfig",      "InvalidModelFile",   "UnsupportedArchitecture", "WeightsNotFound",
      "InsufficientMemory", "InvalidParallelism", "DeviceUnavailable"};
  return progress.phase == WorkerPhase::kFailed && kFinal.count(progress.reason) > 0;
}

// Why the configuration `revision` must be taken back; empty: it need not.
std::string WhyTakeBack(const Observed& observed, const RolloutStatus& rollout,
                        const std::vector<Candidate>& candidates) {
  const auto& spec = observed.model.spec().rollout();
  const int32_t deadline = spec.has_progress_deadline_seconds() ? spec.progress_deadline_seconds()
                                                                : kProgressDeadlineSeconds;
  const int64_t since = observed.now_seconds - SecondsOf(rollout.progress_time());
  for (const Candidate& one : candidates) {
    if (!one.exists() || one.old() || one.serves) continue;
    if (IsRefusedByWorker(one.seen->progress) &&
        SpeaksOf(one.seen->progress, one.target.config_hash)) {
      return one.seen->progress.message;
    }
    if (since > deadline) {
      return absl::StrCat("group ", one.target.name, " was not Ready within ", deadline, " s");
    }
  }
  return "";
}

// One old group that serves may change, and only when every other serves.
// Groups below `first` keep what they run.
void MarkTurns(const std::vector<Candidate>& candidates, int32_t first, int32_t needed,
               std::set<int32_t>& turns) {
  int32_t serving = 0;
  bool busy = false;
  for (const Candidate& one : candidates) {
    serving += one.serves && !one.in_turn() ? 1 : 0;
    if (one.index < first) continue;
    busy |= one.in_turn();
    // What does not serve loses nothing.
    if (one.old() && (one.in_turn() || !one.serves)) turns.insert(one.index);
    if (one.old() && !one.serves) busy = true;
  }
  if (busy) return;
  for (const Candidate& one : candidates) {
    if (!one.old() || !one.serves || one.index < first) continue;
    // Without a spare group, all others must serve; with one, enough stay when this one goes.
    if (serving >= needed) turns.insert(one.index);
    return;
  }
}

void PlanOne(const Candidate& one, bool holds, bool turn, Plan& plan) {
  const bool stays = holds ? !(one.exists() && !one.old()) : (one.old() && !turn);
  if (!stays) {
    plan.groups.push_back(one.target);
    return;
  }
  // As it is: restated where its configuration is known, else left alone.
  const bool known =
      one.kept.has_value() && (!one.exists() || one.seen->config_hash == one.kept->config_hash);
  GroupPlan group = known ? *one.kept : one.target;
  group.apply = known || !one.exists();
  plan.groups.push_back(std::move(group));
}

bool LeaderLeaves(const GroupObservation& seen, const GroupPlan& group) {
  return std::any_of(seen.pods.begin(), seen.pods.end(), [&](const PodObservation& pod) {
    return pod.index == 0 && pod.config_hash != group.config_hash && !pod.gated;
  });
}

// Of several groups that can serve and have the new template (they did not serve when they got it),
// one goes, and only when `needed` can; the one that drains already, if there is one.
std::set<int32_t> GroupsThatGo(const Observed& observed, int32_t needed, const Plan& plan) {
  std::set<int32_t> go;
  std::optional<int32_t> one;
  bool one_drains = false;
  int32_t serving = 0;
  for (const GroupPlan& group : plan.groups) {
    const GroupObservation* seen = FindGroup(observed, group.index);
    if (seen == nullptr) continue;
    serving += CanServe(*seen) ? 1 : 0;
    if (!group.apply || group.config_hash.empty()) continue;
    if (seen->set_config_hash != group.config_hash || !seen->set_is_current) continue;
    if (!LeaderLeaves(*seen, group) || !CanServe(*seen)) {
      go.insert(group.index);
      continue;
    }
    const bool drains = seen->progress.phase == WorkerPhase::kDraining;
    if (!one.has_value() || (drains && !one_drains)) one = group.index;
    one_drains |= drains;
  }
  if (one.has_value() && serving >= needed) go.insert(*one);
  return go;
}

// The leader first: what it runs is finished before the others go.
void ReplaceOutdatedPods(const Observed& observed, int32_t needed, Plan& plan) {
  const std::set<int32_t> go = GroupsThatGo(observed, needed, plan);
  for (const GroupPlan& group : plan.groups) {
    if (go.count(group.index) == 0) continue;
    const GroupObservation& seen = *FindGroup(observed, group.index);
    const bool leader_leaves = LeaderLeaves(seen, group);
    if (leader_leaves && !HasDrained(observed, seen, kOutdated, plan)) continue;
    for (const PodObservation& pod : seen.pods) {
      if (pod.deleting || pod.config_hash == group.config_hash) continue;
      if (leader_leaves && pod.index != 0) continue;
      plan.deletions.push_back({pod.name, pod.uid, std::nullopt, kOutdated});
    }
  }
}

void RemoveGroupsFrom(int32_t first, const Observed& observed, Plan& plan) {
  for (const GroupObservation& group : observed.groups) {
    if (group.index < first || !HasDrained(observed, group, "it is one too many", plan)) continue;
    plan.removed_groups.push_back(GroupName(observed.model, group.index));
  }
}

std::vector<Candidate> MakeCandidates(const Observed& observed,
                                      const serving::v1alpha1::ModelSpec& target,
                                      const std::optional<serving::v1alpha1::ModelSpec>& kept,
                                      int32_t count, const Plan& plan) {
  std::vector<Candidate> candidates;
  const auto dress = [&](GroupPlan& group) {
    for (const auto& node : plan.status.suspect_nodes()) {
      (node.excluded() ? group.excluded_nodes : group.suspect_nodes).push_back(node.name());
    }
    const auto need = NeedOfRank(observed.model.status(), group.spec);
    if (!need.has_value()) return;
    group.small_nodes = SmallNodes(observed.nodes, group.spec, *need);
    group.rank_need = need->words;
  };
  const std::vector<GroupPlan> targets = MakeGroups(observed, target, count);
  const std::vector<GroupPlan> keeps =
      kept.has_value() ? MakeGroups(observed, *kept, count) : std::vector<GroupPlan>();
  for (int32_t i = 0; i < static_cast<int32_t>(targets.size()); ++i) {
    Candidate one;
    one.index = i;
    one.seen = FindGroup(observed, i);
    one.target = targets[i];
    dress(one.target);
    one.serves = one.exists() && CanServe(*one.seen);
    if (!keeps.empty()) one.kept = keeps[i];
    if (one.kept.has_value() && one.kept->config_hash == one.target.config_hash) one.kept.reset();
    if (one.kept.has_value()) dress(*one.kept);
    candidates.push_back(std::move(one));
  }
  return candidates;
}

// Starts the clock of a new revision, and moves it on when a group comes to Ready.
void NoteProgress(const Observed& observed, const std::vector<Candidate>& candidates,
                  int32_t wanted, RolloutStatus& rollout) {
  const std::string& revision = candidates[0].target.config_hash;
  int32_t updated = 0;
  for (const Candidate& one : candidates) updated += one.settled() ? 1 : 0;
  if (rollout.revision() != revision) {
    rollout.set_revision(revision);
    rollout.set_started_time(observed.now);
    rollout.set_progress_time(observed.now);
  } else if (updated > rollout.updated_groups()) {
    rollout.set_progress_time(observed.now);
  }
  rollout.set_updated_groups(std::min(updated, wanted));
}

std::string InWords(const Observed& observed, int32_t updated, int32_t old, int32_t wanted) {
  const auto& spec = observed.model.spec().rollout();
  if (old == 0) return "";
  std::string words = absl::StrCat(updated, " of ", wanted, " groups run the new configuration");
  if (spec.paused()) return words + "; paused by spec.rollout.paused";
  if (spec.partition() > 0) {
    absl::StrAppend(&words, "; groups below ", spec.partition(), " keep the old one");
  }
  return words;
}

}  // namespace

bool IsSettled(const Observed& observed, const GroupPlan& group) {
  const GroupObservation* seen = FindGroup(observed, group.index);
  return seen != nullptr && seen->exists && seen->config_hash == group.config_hash &&
         GroupIsReady(*seen) && RunsWhole(*seen, group);
}

void PlanRollout(const Observed& observed, int32_t wanted, Plan& plan) {
  const auto& spec = observed.model.spec();
  RolloutStatus& rollout = *plan.status.mutable_rollout();
  std::optional<serving::v1alpha1::ModelSpec> kept;
  if (!observed.last_good.revision.empty()) kept = observed.last_good.spec;
  // A spare group tells of the new configuration, too.
  const bool has_spare = wanted > 0 && FindGroup(observed, wanted) != nullptr;
  const int32_t count = std::max(wanted, 1) + (has_spare ? 1 : 0);
  std::vector<Candidate> candidates = MakeCandidates(observed, spec, kept, count, plan);
  if (candidates.empty()) return;  // the source was accepted, so this cannot be
  const std::string revision = candidates[0].target.config_hash;
  const bool can_go_back = candidates[0].kept.has_value();
  bool back = can_go_back && !revision.empty() && rollout.failed_revision() == revision;
  if (!back) {
    NoteProgress(observed, candidates, wanted, rollout);
    if (rollout.failed_revision() != revision) rollout.clear_failed_revision();
    const std::string why =
        can_go_back && wanted > 0 ? WhyTakeBack(observed, rollout, candidates) : "";
    if (!why.empty()) {
      back = true;
      rollout.set_failed_revision(revision);
      rollout.set_message(absl::StrCat(
          "the last change was taken back: ", why,
          ". Change the manifest, or try again: kubectl annotate model ",
          observed.model.metadata().name(), " ", kRetryAnnotation, "=\"$(date)\" --overwrite"));
      plan.events.push_back({"Warning", "RolledBack", rollout.message()});
    }
  }
  if (back) {
    // What was good is the target again; the refused configuration is the old one.
    candidates = MakeCandidates(observed, *kept, std::nullopt, count, plan);
    NoteProgress(observed, candidates, wanted, rollout);
  }
  candidates.resize(std::min(candidates.size(), static_cast<size_t>(wanted)));

  int32_t old = 0;
  bool settled = true;
  for (const Candidate& one : candidates) {
    old += one.old() ? 1 : 0;
    settled &= one.settled();
  }
  const bool surge_wanted =
      spec.rollout().strategy() == "SurgeThenDrain" && !spec.rollout().paused() && wanted > 0 &&
      (old > spec.rollout().partition() || (!settled && FindGroup(observed, wanted) != nullptr));
  if (surge_wanted) {
    candidates =
        MakeCandidates(observed, back ? *kept : spec, back ? std::nullopt : kept, wanted + 1, plan);
  }
  // A rollback is held by nothing.
  const int32_t first = back ? 0 : spec.rollout().paused() ? INT32_MAX : spec.rollout().partition();
  std::set<int32_t> turns;
  // With a spare group, as many as wanted serve besides the one that goes.
  const int32_t needed = surge_wanted ? wanted + 1 : wanted;
  MarkTurns(candidates, first, needed, turns);
  for (const Candidate& one : candidates) {
    const bool holds = one.index < first && one.index < wanted && can_go_back;
    bool turn = turns.count(one.index) > 0;
    if (turn && !holds && one.shrinks()) turn = HasDrained(observed, *one.seen, kOutdated, plan);
    PlanOne(one, holds, turn, plan);
  }
  if (!back) rollout.set_message(InWords(observed, rollout.updated_groups(), old, wanted));
  if (!back && wanted > 0 && settled && !revision.empty() &&
      (observed.last_good.revision != revision)) {
    plan.last_good = LastGood{revision, spec};
  }
  const int32_t last = wanted + (surge_wanted ? 1 : 0);
  RemoveGroupsFrom(last, observed, plan);
  ReplaceOutdatedPods(observed, needed, plan);
}

}  // namespace rempart::op
