// SPDX-License-Identifier: Apache-2.0
#include "tests/operator/plan/simulated_cluster.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "operator/plan/group_objects.h"
#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

constexpr int64_t kNodeGraceSeconds = 40;  // until a silent node is NotReady
constexpr int64_t kDefaultGraceSeconds = 8;
constexpr size_t kPictures = 6;

std::string TimeText(int64_t seconds) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(seconds),
                          absl::UTCTimeZone());
}

}  // namespace

SimulatedCluster::SimulatedCluster(uint64_t seed, int32_t tensor, int32_t replicas, int32_t nodes)
    : random_(seed) {
  const Observed start = OneModelOfThreePods();
  model_ = start.model;
  model_.mutable_spec()->set_replicas(replicas);
  model_.mutable_spec()->mutable_parallelism()->set_tensor(tensor);
  model_.mutable_spec()->mutable_rollout()->set_progress_deadline_seconds(30);
  model_.mutable_spec()->mutable_rollout()->set_drain_seconds(static_cast<int32_t>(Between(0, 9)));
  for (const NodeObservation& node : Nodes(nodes)) nodes_.push_back({node});
  pictures_.push_front(Now());
}

bool SimulatedCluster::Chance(double share) {
  return share > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < share;
}

int64_t SimulatedCluster::Between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_);
}

SimulatedNode* SimulatedCluster::NodeOf(const SimulatedPod& pod) {
  for (SimulatedNode& node : nodes_) {
    if (node.seen.name == pod.seen.node) return &node;
  }
  return nullptr;
}

const SimulatedNode* SimulatedCluster::NodeOf(const SimulatedPod& pod) const {
  return const_cast<SimulatedCluster*>(this)->NodeOf(pod);
}

bool SimulatedCluster::IsLost(const SimulatedPod& pod) const {
  const SimulatedNode* node = NodeOf(pod);
  return pod.frozen || (node != nullptr && node->down);
}

bool SimulatedCluster::IsUp(const SimulatedGroup& group, const SimulatedPod& pod) const {
  return !pod.seen.node.empty() && now_ >= pod.starts_at && !IsLost(pod) && !pod.killed &&
         pod.seen.config_hash == group.pods.at(0).seen.config_hash;
}

bool SimulatedCluster::Serves(const SimulatedGroup& group) const {
  return group.running && now_ >= group.ready_at &&
         std::none_of(group.pods.begin(), group.pods.end(),
                      [](const auto& pod) { return pod.second.bad; });
}

WorkerPhase SimulatedCluster::LeaderPhase(const SimulatedGroup& group) const {
  if (!Serves(group)) return WorkerPhase::kLoading;
  return group.draining ? WorkerPhase::kDraining : WorkerPhase::kReady;
}

void SimulatedCluster::Heal() {
  faults_ = {};
  for (SimulatedNode& node : nodes_) {
    node.down = false;
    node.seen.cordoned = false;
  }
  for (auto& [index, group] : groups_) {
    for (auto& [place, pod] : group.pods) pod.frozen = false;
  }
  (*model_.mutable_metadata()->mutable_annotations())["rempart.dev/retry"] = TimeText(now_);
}

void SimulatedCluster::Break() {
  if (!Chance(faults_.break_pod)) return;
  if (Chance(0.15)) {
    SimulatedNode& node = nodes_[Between(0, static_cast<int64_t>(nodes_.size()) - 1)];
    node.down = !node.down;
    node.down_since = now_;
    return;
  }
  for (auto& [index, group] : groups_) {
    // Its StatefulSet is deleted by hand: the controller lets its pods go.
    if (Chance(0.1)) group.exists = false;
    for (auto& [place, pod] : group.pods) {
      if (!Chance(0.2)) continue;
      switch (Between(0, 2)) {
        case 0:
          pod.killed = true;
          ++pod.seen.restarts;
          pod.seen.last_exit_code = 137;
          pod.starts_at = now_ + 2;
          break;
        case 1:
          pod.frozen = true;
          break;
        default:
          pod.seen.deleting = true;
          pod.grace_ends = now_ + kDefaultGraceSeconds;
      }
    }
  }
}

// The StatefulSet controller: a pod in each place; what lost its set goes.
void SimulatedCluster::RunControllers() {
  for (auto& [index, group] : groups_) {
    if (!group.exists) {
      for (auto& [place, pod] : group.pods) {
        if (!pod.seen.deleting) pod.grace_ends = now_ + kDefaultGraceSeconds;
        pod.seen.deleting = true;
      }
      continue;
    }
    if (now_ < group.template_known_at) continue;
    for (int32_t place = 0; place < group.pod_count; ++place) {
      if (group.pods.count(place) > 0) continue;
      SimulatedPod pod;
      pod.seen.name = absl::StrCat("smollm2-", index, "-", place);
      pod.seen.uid = absl::StrCat("u", next_uid_++);
      pod.seen.index = place;
      pod.seen.phase = "Pending";
      pod.seen.config_hash = group.hash;
      pod.seen.gated = group.gated;
      pod.bad = group.bad;
      pod.created = now_;
      pod.last_heard = now_;
      group.pods[place] = pod;
    }
  }
}

// What is released but has no room stays pending, as with kube-scheduler.
void SimulatedCluster::RunScheduler(SimulatedPod& pod) {
  if (pod.seen.gated || pod.starts_at > 0) return;
  for (SimulatedNode& node : nodes_) {
    const bool asked = pod.seen.node.empty() || pod.seen.node == node.seen.name;
    if (!asked || node.seen.cordoned || node.seen.pods >= 4) continue;
    pod.seen.node = node.seen.name;
    pod.starts_at = now_ + Between(1, 3);
    pod.seen.unschedulable.clear();
    return;
  }
  if (pod.seen.unschedulable.empty()) pod.grace_ends = now_;
  pod.seen.unschedulable = "Insufficient memory";
  pod.seen.unschedulable_seconds = static_cast<int32_t>(now_ - pod.grace_ends);
}

void SimulatedCluster::RunKubelets() {
  for (SimulatedNode& node : nodes_) {
    node.seen.pods = 0;
    node.seen.ready = !node.down || now_ - node.down_since < kNodeGraceSeconds;
  }
  for (auto& [index, group] : groups_) {
    for (auto pod = group.pods.begin(); pod != group.pods.end();) {
      SimulatedNode* node = pod->second.starts_at > 0 ? NodeOf(pod->second) : nullptr;
      const bool unbound = node == nullptr;
      const bool confirmed = unbound || (!node->down && now_ >= pod->second.grace_ends);
      // A process that runs ends within two seconds of its SIGTERM.
      const bool quick = !unbound && !node->down && !pod->second.frozen;
      if (pod->second.seen.deleting && (confirmed || quick)) {
        pod = group.pods.erase(pod);
        continue;
      }
      if (node != nullptr) ++node->seen.pods;
      ++pod;
    }
  }
  for (auto& [index, group] : groups_) {
    for (auto& [place, pod] : group.pods) {
      RunScheduler(pod);
      const bool runs = pod.starts_at > 0 && now_ >= pod.starts_at;
      if (runs && !IsLost(pod)) pod.seen.phase = "Running";
      if (runs && pod.killed) pod.killed = false;
      if (runs && !IsLost(pod)) pod.last_heard = now_;
      pod.seen.age_seconds = static_cast<int32_t>(now_ - pod.created);
      if (pod.seen.deleting) {
        pod.seen.overdue_seconds =
            static_cast<int32_t>(std::max<int64_t>(now_ - pod.grace_ends, 0));
      }
    }
  }
}

void SimulatedCluster::RunEpochs(int32_t index, SimulatedGroup& group) {
  std::vector<std::string> missing;
  for (int32_t place = 0; place < group.pod_count; ++place) {
    const auto pod = group.pods.find(place);
    const bool up = pod != group.pods.end() && group.pods.count(0) > 0 && IsUp(group, pod->second);
    const bool stays = group.running && up && pod->second.epoch == group.epoch;
    if (!up || (group.running && !stays))
      missing.push_back(absl::StrCat("smollm2-", index, "-", place));
  }
  if (group.running && !missing.empty()) {
    group.running = false;
    group.ending = {group.epoch, "lost a member", missing, 1000, 0};
    group.ended_at = now_;
  }
  if (!group.running && missing.empty() && !group.pods.empty()) {
    group.epoch = ++last_epoch_[index];
    group.running = true;
    group.ready_at = now_ + Between(1, 4);
    for (auto& [place, pod] : group.pods) pod.epoch = group.epoch;
  }
  group.ending.age_ms = static_cast<int32_t>(1000 * (now_ - group.ended_at));
}

// New ones come while it takes any; each runs for some seconds. At the deadline of a drain the rest
// goes elsewhere.
void SimulatedCluster::RunRequests(SimulatedGroup& group) {
  if (!Serves(group)) {
    group.requests = 0;
    group.draining = false;  // it held for the epoch
    return;
  }
  if (group.draining && now_ >= group.drain_deadline) group.requests = 0;
  if (!group.draining && Chance(0.5)) ++group.requests;
  if (group.requests > 0 && Chance(0.25)) --group.requests;
}

void SimulatedCluster::Second() {
  ++now_;
  Break();
  RunControllers();
  RunKubelets();
  for (auto& [index, group] : groups_) {
    RunEpochs(index, group);
    RunRequests(group);
    const int32_t limit = std::max(group.pod_count, model_.spec().parallelism().tensor());
    if (static_cast<int32_t>(group.pods.size()) > limit)
      broken_ = "more pods than ranks in a group";
  }
  for (auto group = groups_.begin(); group != groups_.end();) {
    group = !group->second.exists && group->second.pods.empty() ? groups_.erase(group) : ++group;
  }
  pictures_.push_front(Now());
  // Each part of the picture moves on by itself, and never back.
  for (size_t* at : {&sets_at_, &pods_at_, &nodes_at_, &model_at_}) {
    *at = Chance(faults_.late) ? std::min(*at + 1, kPictures - 1) : 0;
  }
  if (pictures_.size() > kPictures) pictures_.pop_back();
}

SimulatedCluster::Picture SimulatedCluster::Now() const {
  Picture picture;
  for (const auto& [index, group] : groups_) {
    GroupObservation set;
    set.index = index;
    set.exists = group.exists;
    set.set_config_hash = group.hash;
    set.set_is_current = now_ >= group.template_known_at;
    picture.sets.push_back(set);
    for (const auto& [place, pod] : group.pods) {
      picture.pods[index].push_back(pod.seen);
      PodObservation& seen = picture.pods[index].back();
      seen.ready = place == 0 && Serves(group) && !pod.seen.deleting;
    }
  }
  for (const SimulatedNode& node : nodes_) picture.nodes.push_back(node.seen);
  picture.model = model_;
  picture.last_good = last_good_;
  return picture;
}

MembersObservation SimulatedCluster::MembersOf(const SimulatedGroup& group) const {
  MembersObservation members;
  members.epoch = group.epoch;
  members.running = group.running;
  members.ending = group.ending;
  for (const auto& [place, pod] : group.pods) {
    if (pod.starts_at == 0 || now_ < pod.starts_at) continue;
    MemberObservation member;
    member.pod_index = place;
    member.pod = pod.seen.name;
    member.node = pod.seen.node;
    member.connected = !pod.killed;
    member.silent_ms = static_cast<int32_t>(1000 * (now_ - pod.last_heard));
    member.phase = !group.running ? WorkerPhase::kStarting : LeaderPhase(group);
    member.epoch = group.running ? group.epoch : 0;
    members.members.push_back(member);
  }
  return members;
}

Observed SimulatedCluster::Observe() {
  const auto at = [&](size_t back) -> const Picture& {
    return pictures_[std::min(back, pictures_.size() - 1)];
  };
  Observed observed = OneModel();
  observed.model = at(model_at_).model;
  observed.last_good = at(model_at_).last_good;
  observed.nodes = at(nodes_at_).nodes;
  observed.now_seconds = now_;
  observed.now = TimeText(now_);
  std::map<int32_t, GroupObservation> groups;
  for (const GroupObservation& set : at(sets_at_).sets) groups[set.index] = set;
  for (const auto& [index, pods] : at(pods_at_).pods) {
    GroupObservation& group = groups[index];
    group.index = index;
    group.pods = pods;
    for (PodObservation& pod : group.pods) {
      const auto promise = promised_.find(pod.uid);
      if (promise == promised_.end()) continue;
      pod.gated = false;
      if (pod.node.empty()) pod.node = promise->second;
    }
  }
  for (NodeObservation& node : observed.nodes) {
    node.pods = 0;
    for (const auto& [index, group] : groups) {
      for (const PodObservation& pod : group.pods) node.pods += pod.node == node.name ? 1 : 0;
    }
    node.requested = {{"cpu", 1000 * node.pods}};
  }
  for (auto& [index, group] : groups) {
    group.config_hash = group.pods.empty() ? group.set_config_hash : group.pods[0].config_hash;
    for (const PodObservation& pod : group.pods) {
      if (pod.config_hash != group.config_hash) group.config_hash.clear();
    }
    const auto there = groups_.find(index);
    if (there != groups_.end()) {
      group.members = MembersOf(there->second);
      const bool leads = there->second.pods.count(0) > 0 && !there->second.pods.at(0).seen.deleting;
      if (leads && there->second.running) {
        group.progress.phase = LeaderPhase(there->second);
        group.progress.requests = there->second.requests;
        group.progress.config_hash = there->second.pods.at(0).seen.config_hash;
      }
    }
    observed.groups.push_back(group);
  }
  return observed;
}

// What must hold of every plan, whatever it was shown.
void SimulatedCluster::CheckPlan(const Plan& plan) {
  const Picture& shown = pictures_[std::min(model_at_, pictures_.size() - 1)];
  const int32_t most = shown.model.spec().replicas() + 1;
  if (static_cast<int32_t>(plan.groups.size()) > most) broken_ = "more groups than the budget";
  std::map<std::string, int> deleted;
  for (const PodDeletion& deletion : plan.deletions) {
    if (++deleted[deletion.uid] > 1) broken_ = "a pod deleted twice in one plan";
  }
  for (const PodRelease& release : plan.releases) {
    if (deleted.count(release.uid) > 0) broken_ = "a pod released and deleted in one plan";
    for (const NodeObservation& node : pictures_[std::min(nodes_at_, pictures_.size() - 1)].nodes) {
      if (node.name == release.node && (node.cordoned || !node.ready)) {
        broken_ = "a pod released for a node that takes none";
      }
    }
  }
}

void SimulatedCluster::Execute(const Observed& observed, const Plan& plan) {
  CheckPlan(plan);
  CheckDrained(observed, plan);
  for (const GroupPlan& intent : plan.groups) {
    if (!intent.apply || Chance(faults_.drop)) continue;
    SimulatedGroup& group = groups_[intent.index];
    if (!group.exists || group.hash != intent.config_hash) {
      group.template_known_at = now_ + Between(0, 2);
    }
    group.exists = true;
    group.hash = intent.config_hash;
    group.gated = IsGated(intent);
    group.pod_count = intent.pod_count;
    group.bad = intent.config.engine().context_length() == 666;
  }
  for (const std::string& name : plan.removed_groups) {
    const auto group = groups_.find(std::stoi(name.substr(name.rfind('-') + 1)));
    if (group != groups_.end() && !Chance(faults_.drop)) group->second.exists = false;
  }
  for (auto& [index, group] : groups_) {
    for (auto& [place, pod] : group.pods) {
      for (const PodDeletion& deletion : plan.deletions) {
        if (deletion.uid != pod.seen.uid || Chance(faults_.drop)) continue;
        const int64_t grace = deletion.grace_seconds.value_or(kDefaultGraceSeconds);
        pod.grace_ends = pod.seen.deleting ? std::min(pod.grace_ends, now_ + grace) : now_ + grace;
        pod.seen.deleting = true;
        if (grace == 0) pod.starts_at = 0;  // its object goes without the word of its node
      }
      for (const PodRelease& release : plan.releases) {
        if (release.uid != pod.seen.uid || !pod.seen.gated || Chance(faults_.drop)) continue;
        pod.seen.gated = false;
        pod.seen.node = release.node;
        promised_[release.uid] = release.node;
      }
    }
  }
  CarryOrders(plan);
  if (plan.last_good.has_value() && !Chance(faults_.drop)) last_good_ = *plan.last_good;
  if (!Chance(faults_.drop)) *model_.mutable_status() = plan.status;
}

// What Join carries to leaders that can be reached.
void SimulatedCluster::CarryOrders(const Plan& plan) {
  for (auto& [index, group] : groups_) {
    const bool reached = Serves(group) && !IsLost(group.pods.at(0)) && !Chance(faults_.drop);
    if (!reached || group.pods.at(0).seen.deleting) continue;
    const auto order = plan.drains.find(index);
    if (order != plan.drains.end() && !group.draining) {
      group.draining = true;
      group.drain_deadline = now_ + order->second.deadline_seconds;
    }
    for (const std::string& name : plan.resumes) {
      if (name == absl::StrCat("smollm2-", index)) group.draining = false;
    }
  }
}

// A group that was seen to serve goes only when it was seen idle, or has had its time.
void SimulatedCluster::CheckDrained(const Observed& observed, const Plan& plan) {
  const int32_t allowed = observed.model.spec().rollout().drain_seconds();
  for (const GroupObservation& group : observed.groups) {
    const std::string name = absl::StrCat("smollm2-", group.index);
    const auto& removed = plan.removed_groups;
    const bool is_removed = std::find(removed.begin(), removed.end(), name) != removed.end();
    bool loses = false;
    bool leader_stays = false;
    for (const PodObservation& pod : group.pods) {
      leader_stays |= pod.index == 0 && !pod.deleting;
      for (const PodDeletion& deletion : plan.deletions) {
        const bool on_purpose = deletion.why == "its configuration is outdated" ||
                                absl::StrContains(deletion.why, "is cordoned");
        loses |= deletion.uid == pod.uid && on_purpose;
      }
    }
    const bool serves = group.exists && (group.progress.phase == WorkerPhase::kReady ||
                                         group.progress.phase == WorkerPhase::kDraining);
    if ((!loses && !is_removed) || !serves || !leader_stays) continue;
    const bool idle =
        group.progress.phase == WorkerPhase::kDraining && group.progress.requests == 0;
    int64_t since = observed.now_seconds;
    for (const auto& status : observed.model.status().groups()) {
      absl::Time time;
      std::string error;
      if (status.name() == name &&
          absl::ParseTime(absl::RFC3339_full, status.draining_since(), &time, &error)) {
        since = absl::ToUnixSeconds(time);
      }
    }
    if (!idle && observed.now_seconds - since < allowed) {
      broken_ = absl::StrCat("group ", group.index, " cut off with ", group.progress.requests,
                             " requests after ", observed.now_seconds - since, " s");
    }
  }
}

void SimulatedCluster::Print() const {
  std::printf("%lld replicas %d context %d, last good %.4s context %d: %s\n",
              static_cast<long long>(now_), model_.spec().replicas(),
              model_.spec().engine().context_length(), last_good_.revision.c_str(),
              last_good_.spec.engine().context_length(), model_.status().message().c_str());
  for (const auto& [index, group] : groups_) {
    std::printf(
        "  group %d exists %d hash %.4s epoch %d running %d serves %d draining %d requests %d\n",
        index, group.exists, group.hash.c_str(), group.epoch, group.running, Serves(group),
        group.draining, group.requests);
    for (const auto& [place, pod] : group.pods) {
      std::printf("    %s %s hash %.4s node %s gated %d deleting %d frozen %d starts %lld %s\n",
                  pod.seen.name.c_str(), pod.seen.uid.c_str(), pod.seen.config_hash.c_str(),
                  pod.seen.node.c_str(), pod.seen.gated, pod.seen.deleting, pod.frozen,
                  static_cast<long long>(pod.starts_at), pod.seen.unschedulable.c_str());
    }
  }
}

std::string SimulatedCluster::Unsettled(bool expects_last_good) const {
  const auto& spec = expects_last_good ? last_good_.spec : model_.spec();
  const int32_t wanted = model_.spec().replicas();
  if (static_cast<int32_t>(groups_.size()) != wanted) {
    return absl::StrCat(groups_.size(), " groups instead of ", wanted);
  }
  for (const auto& [index, group] : groups_) {
    if (!group.exists || !Serves(group)) return absl::StrCat("group ", index, " does not serve");
    if (group.draining) return absl::StrCat("group ", index, " drains");
    if (static_cast<int32_t>(group.pods.size()) != PodCount(spec)) {
      return absl::StrCat("group ", index, " has ", group.pods.size(), " pods");
    }
    for (const auto& [place, pod] : group.pods) {
      if (pod.seen.deleting || pod.seen.gated || pod.seen.config_hash != group.hash) {
        return absl::StrCat("pod ", pod.seen.name, " is on its way");
      }
    }
  }
  return "";
}

}  // namespace rempart::op
