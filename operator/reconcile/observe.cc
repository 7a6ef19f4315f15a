// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/observe.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/plan.h"
#include "operator/plan/quantity.h"
#include "operator/reconcile/members.h"
#include "operator/reconcile/topology.h"

namespace rempart::op {
namespace {

constexpr char kOthersSelector[] = "app.kubernetes.io/managed-by!=rempart-operator";

ReflectorOptions Selecting(ReflectorOptions options, const char* selector) {
  options.label_selector = selector;
  return options;
}

// The label is asked for, too: a stranger's ConfigMap named as ours is not ours.
bool BelongsTo(const k8s::v1::ObjectMeta& metadata, const Model& model) {
  if (metadata.namespace_() != model.metadata().namespace_()) return false;
  return std::any_of(metadata.owner_references().begin(), metadata.owner_references().end(),
                     [&](const auto& owner) {
                       return owner.controller() && owner.uid() == model.metadata().uid();
                     });
}

// The number behind the last '-' of "model-3", if the rest is the model's name.
std::optional<int32_t> GroupIndex(absl::string_view group, absl::string_view model) {
  int32_t index = 0;
  if (!absl::ConsumePrefix(&group, model) || !absl::ConsumePrefix(&group, "-") ||
      !absl::SimpleAtoi(group, &index) || index < 0) {
    return std::nullopt;
  }
  return index;
}

std::string ConfigHashOf(const k8s::v1::ObjectMeta& metadata) {
  const auto found = metadata.annotations().find(kConfigAnnotation);
  return found == metadata.annotations().end() ? "" : found->second;
}

std::string Termination(const k8s::v1::ContainerStatus& container) {
  for (const k8s::v1::ContainerState* state : {&container.state(), &container.last_state()}) {
    if (!state->has_terminated()) continue;
    const k8s::v1::Terminated& end = state->terminated();
    const absl::string_view text = absl::StripAsciiWhitespace(end.message());
    return absl::StrCat("exit code ", end.exit_code(), end.reason().empty() ? "" : " (",
                        end.reason(), end.reason().empty() ? "" : ")", text.empty() ? "" : ": ",
                        text);
  }
  return "";
}

absl::Time TimeOf(const std::string& timestamp) {
  absl::Time time;
  std::string error;
  return absl::ParseTime(absl::RFC3339_full, timestamp, &time, &error) ? time
                                                                       : absl::InfinitePast();
}

// 0 for what has no time, or a later one.
int32_t SecondsSince(const std::string& timestamp, absl::Time now) {
  if (timestamp.empty()) return 0;
  const int64_t seconds = absl::ToInt64Seconds(now - TimeOf(timestamp));
  return static_cast<int32_t>(std::clamp<int64_t>(seconds, 0, INT32_MAX));
}

int32_t PodIndex(const k8s::v1::Pod& pod) {
  const std::string& name = pod.metadata().name();
  int32_t index = 0;
  return absl::SimpleAtoi(name.substr(name.rfind('-') + 1), &index) ? index : 0;
}

void ObserveContainers(const k8s::v1::Pod& pod, PodObservation& seen) {
  for (const auto& container : pod.status().container_statuses()) {
    seen.restarts += container.restart_count();
    if (container.state().has_waiting()) {
      seen.waiting_reason = container.state().waiting().reason();
      seen.waiting_message = container.state().waiting().message();
    }
    if (std::string end = Termination(container); !end.empty()) {
      seen.last_termination = std::move(end);
      seen.last_exit_code = container.state().has_terminated()
                                ? container.state().terminated().exit_code()
                                : container.last_state().terminated().exit_code();
    }
  }
}

PodObservation ObservePod(const k8s::v1::Pod& pod, const Sources& sources) {
  PodObservation seen;
  seen.name = pod.metadata().name();
  seen.uid = pod.metadata().uid();
  seen.index = PodIndex(pod);
  seen.config_hash = ConfigHashOf(pod.metadata());
  seen.node = pod.spec().node_name();
  const std::string promised = sources.ledger->PromisedNode(KeyOf(pod), seen.uid);
  seen.gated = IsHeldBack(pod) && promised.empty();
  if (seen.node.empty()) seen.node = promised;
  seen.phase = pod.status().phase();
  seen.ready = PodIsReady(pod);
  seen.age_seconds = SecondsSince(pod.metadata().creation_timestamp(), sources.now);
  seen.deleting = !pod.metadata().deletion_timestamp().empty();
  seen.overdue_seconds = SecondsSince(pod.metadata().deletion_timestamp(), sources.now);
  for (const auto& condition : pod.status().conditions()) {
    if (condition.type() == "PodScheduled" && condition.status() == "False" &&
        condition.reason() == "Unschedulable") {
      seen.unschedulable = condition.message();
      seen.unschedulable_seconds = SecondsSince(condition.last_transition_time(), sources.now);
    }
  }
  ObserveContainers(pod, seen);
  return seen;
}

// Of a pod that is going, or that has come since, the old words say nothing.
void AddProgress(const GroupReport& report, const k8s::v1::Pod& pod, GroupObservation& group) {
  if (!pod.metadata().deletion_timestamp().empty()) return;
  if (report.pod_name != pod.metadata().name() ||
      report.at < TimeOf(pod.metadata().creation_timestamp())) {
    return;
  }
  group.progress = report.progress;
}

// What runs is what the pods were made from; their StatefulSet may be ahead of them. Pods of
// several configurations run none.
std::string RunningHash(const GroupObservation& group) {
  if (group.pods.empty()) return group.set_config_hash;
  for (const PodObservation& pod : group.pods) {
    if (pod.config_hash != group.pods[0].config_hash) return "";
  }
  return group.pods[0].config_hash;
}

void ObserveSet(const k8s::v1::StatefulSet& set, GroupObservation& group) {
  group.exists = set.metadata().deletion_timestamp().empty();
  group.set_config_hash = ConfigHashOf(set.spec().template_().metadata());
  group.set_is_current = set.status().observed_generation() >= set.metadata().generation();
}

std::vector<GroupObservation> ObserveGroups(const Sources& sources, const Model& model) {
  std::map<int32_t, GroupObservation> groups;
  const std::string word = KeyOf(model).ToString();
  for (const auto& set : sources.informers->stateful_sets.store().Find(word)) {
    if (!BelongsTo(set->metadata(), model)) continue;
    const auto index = GroupIndex(set->metadata().name(), model.metadata().name());
    if (index.has_value()) ObserveSet(*set, groups[*index]);
  }
  for (const auto& pod : sources.informers->pods.store().Find(word)) {
    const auto label = pod->metadata().labels().find(kGroupLabel);
    if (label == pod->metadata().labels().end()) continue;
    const auto index = GroupIndex(label->second, model.metadata().name());
    if (!index.has_value()) continue;
    GroupObservation& group = groups[*index];
    group.pods.push_back(ObservePod(*pod, sources));
    if (group.pods.back().index != 0) continue;
    const GroupReport report =
        sources.joins->Report(absl::StrCat(model.metadata().namespace_(), "/", label->second));
    AddProgress(report, *pod, group);
  }
  std::vector<GroupObservation> sorted;
  for (auto& [index, group] : groups) {
    group.index = index;
    group.config_hash = RunningHash(group);
    group.members =
        ObserveMembers(sources.joins->Report(absl::StrCat(model.metadata().namespace_(), "/",
                                                          model.metadata().name(), "-", index)),
                       sources.measured);
    sorted.push_back(std::move(group));
  }
  return sorted;
}

// Only those of interest, unless a pod waits for a place or must leave its node, or there is more
// to know of a node than that: then all.
std::vector<NodeObservation> ObserveNodes(const Sources& sources, const Observed& observed) {
  std::set<std::string> in_use;
  bool all = false;
  for (const GroupObservation& group : observed.groups) {
    for (const PodObservation& pod : group.pods) {
      all |= pod.gated;
      if (!pod.node.empty()) in_use.insert(pod.node);
    }
  }
  std::vector<NodeObservation> nodes;
  for (const std::string& name : in_use) {
    const auto node = sources.informers->nodes.store().Get({"", name});
    if (node == nullptr) continue;
    nodes.push_back(ObserveNode(*node, *sources.ledger));
    all |= nodes.back().cordoned || !nodes.back().ready;
  }
  for (const auto& suspect : observed.model.status().suspect_nodes()) all |= suspect.excluded();
  // Of all it is looked whether their GPUs are large enough.
  all |= observed.model.spec().device() == "gpu" && observed.model.status().has_rank_memory();
  if (!all) return nodes;
  nodes.clear();
  for (const auto& node : sources.informers->nodes.store().All()) {
    nodes.push_back(ObserveNode(*node, *sources.ledger));
  }
  return nodes;
}

std::vector<std::string> ModelWord(const k8s::v1::ObjectMeta& metadata) {
  const ObjectKey owner = OwnerOf(metadata);
  if (owner.name.empty()) return {};
  return {owner.ToString()};
}

template <typename T>
std::vector<std::string> ByModel(const T& object) {
  return ModelWord(object.metadata());
}

std::vector<std::string> PodWords(const k8s::v1::Pod& pod) {
  std::vector<std::string> words = ModelWord(pod.metadata());
  if (!pod.spec().node_name().empty()) words.push_back(NodeWord(pod.spec().node_name()));
  return words;
}

std::vector<std::string> ModelWords(const Model& model) {
  std::vector<std::string> words;
  for (const std::string& name : ServedNames(model)) words.push_back(NameWord(name));
  if (const std::string claim = ClaimOf(model); !claim.empty()) {
    words.push_back(ClaimWord({model.metadata().namespace_(), claim}));
  }
  if (const std::string& claim = model.spec().engine().repack_cache_claim(); !claim.empty()) {
    words.push_back(ClaimWord({model.metadata().namespace_(), claim}));
  }
  return words;
}

ClaimState StateOfCache(const k8s::v1::PersistentVolumeClaim* claim) {
  if (claim == nullptr) return ClaimState::kMissing;
  const auto& labels = claim->metadata().labels();
  const auto mark = labels.find(kRepackCacheLabel);
  return mark != labels.end() && mark->second == "true" ? ClaimState::kFound
                                                        : ClaimState::kUnmarked;
}

// Ten thousand pods with all their probes and volumes would fill the operator's memory.
void TrimContainers(google::protobuf::RepeatedPtrField<k8s::v1::Container>& containers) {
  for (k8s::v1::Container& container : containers) {
    k8s::v1::Container kept;
    kept.mutable_resources()->mutable_requests()->swap(
        *container.mutable_resources()->mutable_requests());
    container.Swap(&kept);
  }
}

template <typename Map>
void KeepOnly(const std::set<std::string>& keys, Map& map) {
  Map kept;
  for (const std::string& key : keys) {
    if (const auto found = map.find(key); found != map.end()) kept[key] = found->second;
  }
  map.swap(kept);
}

// Ready says it in a word; PodScheduled is of interest while it is not so.
void TrimConditions(google::protobuf::RepeatedPtrField<k8s::v1::PodCondition>& conditions) {
  const auto is_dull = [](const k8s::v1::PodCondition& one) {
    return one.type() != "Ready" && !(one.type() == "PodScheduled" && one.status() != "True");
  };
  conditions.erase(std::remove_if(conditions.begin(), conditions.end(), is_dull), conditions.end());
  for (k8s::v1::PodCondition& condition : conditions) {
    if (condition.type() != "Ready") continue;
    condition.clear_reason();
    condition.clear_message();
    condition.clear_last_transition_time();
  }
}

void TrimPod(k8s::v1::Pod& pod) {
  KeepOnly({kModelLabel, kGroupLabel}, *pod.mutable_metadata()->mutable_labels());
  KeepOnly({kConfigAnnotation}, *pod.mutable_metadata()->mutable_annotations());
  pod.mutable_metadata()->clear_owner_references();
  k8s::v1::PodSpec& spec = *pod.mutable_spec();
  spec.clear_volumes();
  spec.clear_affinity();
  spec.clear_tolerations();
  spec.clear_security_context();
  TrimContainers(*spec.mutable_containers());
  TrimContainers(*spec.mutable_init_containers());
  // Once it has its node, the ledger looks no further.
  if (!spec.node_name().empty()) spec.clear_node_selector();
  TrimConditions(*pod.mutable_status()->mutable_conditions());
}

void TrimOtherPod(k8s::v1::Pod& pod) {
  TrimPod(pod);
  k8s::v1::ObjectMeta kept;
  kept.set_name(pod.metadata().name());
  kept.set_namespace_(pod.metadata().namespace_());
  kept.set_uid(pod.metadata().uid());
  kept.set_resource_version(pod.metadata().resource_version());
  pod.mutable_metadata()->Swap(&kept);
  const std::string phase = pod.status().phase();
  pod.mutable_status()->Clear();
  pod.mutable_status()->set_phase(phase);
}

void TrimNode(k8s::v1::Node& node) { node.mutable_metadata()->clear_annotations(); }

}  // namespace

Informers::Informers(const Client* client, ReflectorOptions options)
    : models(client, options, ModelWords),
      stateful_sets(client, Selecting(options, kManagedSelector), ByModel<k8s::v1::StatefulSet>),
      pods(client, Selecting(options, kManagedSelector), PodWords, TrimPod),
      services(client, Selecting(options, kManagedSelector)),
      config_maps(client, Selecting(options, kManagedSelector), ByModel<k8s::v1::ConfigMap>),
      claims(client, options),
      budgets(client, Selecting(options, kManagedSelector)),
      policies(client, Selecting(options, kManagedSelector)),
      // Read all at once, whenever pods wait for a place.
      nodes(client, options, {}, TrimNode, StoreForm::kWhole),
      other_pods(client, Selecting(options, kOthersSelector), {}, TrimOtherPod) {}

std::string NameWord(const std::string& served_name) { return "name " + served_name; }
std::string NodeWord(const std::string& node) { return "node " + node; }
std::string ClaimWord(const ObjectKey& claim) { return "claim " + claim.ToString(); }

bool Informers::synced() const { return Unsynced().empty(); }

std::string Informers::Unsynced() const {
  std::string names;
  const auto look = [&](const char* name, bool is_synced) {
    if (!is_synced) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  };
  look("models", models.synced());
  look("statefulsets", stateful_sets.synced());
  look("pods", pods.synced());
  look("services", services.synced());
  look("configmaps", config_maps.synced());
  look("persistentvolumeclaims", claims.synced());
  look("poddisruptionbudgets", budgets.synced());
  look("networkpolicies", policies.synced());
  look("nodes", nodes.synced());
  look("other pods", other_pods.synced());
  return names;
}

ObjectKey OwnerOf(const k8s::v1::ObjectMeta& metadata) {
  const auto model = metadata.labels().find(kModelLabel);
  return {metadata.namespace_(), model == metadata.labels().end() ? "" : model->second};
}

ObjectKey ModelOfGroup(const std::string& group) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(group, absl::MaxSplits('/', 1));
  return {parts.first, parts.second.substr(0, parts.second.rfind('-'))};
}

NodeObservation ObserveNode(const k8s::v1::Node& node, const NodeLedger& ledger) {
  NodeObservation seen;
  seen.name = node.metadata().name();
  seen.labels = {node.metadata().labels().begin(), node.metadata().labels().end()};
  seen.cordoned = node.spec().unschedulable();
  for (const auto& taint : node.spec().taints()) {
    // Said by `ready` and `cordoned` in better words.
    if (taint.key() == "node.kubernetes.io/unschedulable" ||
        taint.key() == "node.kubernetes.io/unreachable" ||
        taint.key() == "node.kubernetes.io/not-ready") {
      continue;
    }
    seen.taints.push_back({taint.key(), taint.value(), taint.effect()});
  }
  seen.ready =
      std::any_of(node.status().conditions().begin(), node.status().conditions().end(),
                  [](const auto& one) { return one.type() == "Ready" && one.status() == "True"; });
  seen.allocatable = ParseAmountsOf(node.status().allocatable());
  ledger.Fill(seen);
  return seen;
}

std::optional<Observed> Observe(const Sources& sources, const Settings& settings,
                                const ObjectKey& key) {
  const Informers& informers = *sources.informers;
  const auto model = informers.models.store().Get(key);
  if (model == nullptr || !model->metadata().deletion_timestamp().empty()) return std::nullopt;
  Observed observed;
  observed.model = *model;
  observed.settings = settings;
  observed.now = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", sources.now, absl::UTCTimeZone());
  observed.now_seconds = absl::ToUnixSeconds(sources.now);
  observed.listening_seconds =
      static_cast<int32_t>(std::min<int64_t>(absl::ToInt64Seconds(sources.listening), INT32_MAX));
  // Only who wants one of its names matters.
  std::map<ObjectKey, std::shared_ptr<const Model>> rivals;
  for (const std::string& name : ServedNames(*model)) {
    for (const auto& other : informers.models.store().Find(NameWord(name))) {
      if (KeyOf(*other) != key && other->metadata().deletion_timestamp().empty()) {
        rivals[KeyOf(*other)] = other;
      }
    }
  }
  for (const auto& [rival, other] : rivals) {
    observed.others.push_back(
        {FullName(*other), ServedNames(*other), other->metadata().creation_timestamp()});
  }
  if (const std::string claim = ClaimOf(*model); !claim.empty()) {
    const bool found = informers.claims.store().Has({key.ns, claim});
    observed.claim = found ? ClaimState::kFound : ClaimState::kMissing;
  }
  if (const std::string& claim = model->spec().engine().repack_cache_claim(); !claim.empty()) {
    observed.cache_claim = StateOfCache(informers.claims.store().Get({key.ns, claim}).get());
  }
  observed.groups = ObserveGroups(sources, *model);
  observed.nodes = ObserveNodes(sources, observed);
  const auto record = informers.config_maps.store().Get({key.ns, LastGoodName(*model)});
  if (record != nullptr && BelongsTo(record->metadata(), *model)) {
    observed.last_good = ReadLastGoodRecord(*record).value_or(LastGood{});
  }
  return observed;
}

}  // namespace rempart::op
