// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/observe.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/plan.h"
#include "operator/reconcile/topology.h"

namespace rempart::op {
namespace {

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

PodObservation ObservePod(const k8s::v1::Pod& pod) {
  PodObservation seen;
  seen.name = pod.metadata().name();
  seen.node = pod.spec().node_name();
  seen.phase = pod.status().phase();
  seen.ready = PodIsReady(pod);
  seen.deleting = !pod.metadata().deletion_timestamp().empty();
  for (const auto& condition : pod.status().conditions()) {
    if (condition.type() == "PodScheduled" && condition.status() == "False" &&
        condition.reason() == "Unschedulable") {
      seen.unschedulable = condition.message();
    }
  }
  for (const auto& container : pod.status().container_statuses()) {
    seen.restarts += container.restart_count();
    if (container.state().has_waiting()) {
      seen.waiting_reason = container.state().waiting().reason();
      seen.waiting_message = container.state().waiting().message();
    }
    if (std::string end = Termination(container); !end.empty()) {
      seen.last_termination = std::move(end);
    }
  }
  return seen;
}

absl::Time CreationTime(const k8s::v1::Pod& pod) {
  absl::Time time;
  std::string error;
  return absl::ParseTime(absl::RFC3339_full, pod.metadata().creation_timestamp(), &time, &error)
             ? time
             : absl::InfinitePast();
}

// Of a pod that is going, or that has come since, the old words say nothing.
void AddProgress(const GroupReport& report, const k8s::v1::Pod& pod, GroupObservation& group) {
  if (!pod.metadata().deletion_timestamp().empty()) return;
  if (report.pod_name != pod.metadata().name() || report.at < CreationTime(pod)) return;
  group.progress = report.progress;
}

std::vector<GroupObservation> ObserveGroups(const Informers& informers, const JoinRegistry& joins,
                                            const Model& model) {
  std::map<int32_t, GroupObservation> groups;
  const auto sets = informers.stateful_sets.store().Where(
      [&](const auto& set) { return BelongsTo(set.metadata(), model); });
  for (const auto& set : sets) {
    const auto index = GroupIndex(set->metadata().name(), model.metadata().name());
    if (!index.has_value()) continue;
    GroupObservation& group = groups[*index];
    group.exists = set->metadata().deletion_timestamp().empty();
    group.config_hash = ConfigHashOf(set->spec().template_().metadata());
  }
  const auto pods = informers.pods.store().Where(
      [&](const auto& pod) { return OwnerOf(pod.metadata()) == KeyOf(model); });
  for (const auto& pod : pods) {
    const auto label = pod->metadata().labels().find(kGroupLabel);
    if (label == pod->metadata().labels().end()) continue;
    const auto index = GroupIndex(label->second, model.metadata().name());
    if (!index.has_value()) continue;
    GroupObservation& group = groups[*index];
    group.pods.push_back(ObservePod(*pod));
    // What runs is what the pod was made from; its StatefulSet may be ahead of it.
    group.config_hash = ConfigHashOf(pod->metadata());
    AddProgress(joins.Report(absl::StrCat(model.metadata().namespace_(), "/", label->second)), *pod,
                group);
  }
  std::vector<GroupObservation> sorted;
  for (auto& [index, group] : groups) {
    group.index = index;
    sorted.push_back(std::move(group));
  }
  return sorted;
}

}  // namespace

Informers::Informers(const Client* client, ReflectorOptions options)
    : models(client, options),
      stateful_sets(client, Selecting(options, kManagedSelector)),
      pods(client, Selecting(options, kManagedSelector)),
      services(client, Selecting(options, kManagedSelector)),
      config_maps(client, Selecting(options, kManagedSelector)),
      claims(client, options) {}

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

std::optional<Observed> Observe(const Informers& informers, const JoinRegistry& joins,
                                const Settings& settings, const ObjectKey& key, absl::Time now) {
  const auto model = informers.models.store().Get(key);
  if (model == nullptr || !model->metadata().deletion_timestamp().empty()) return std::nullopt;
  Observed observed;
  observed.model = *model;
  observed.settings = settings;
  observed.now = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", now, absl::UTCTimeZone());
  for (const auto& other : informers.models.store().All()) {
    if (KeyOf(*other) == key || !other->metadata().deletion_timestamp().empty()) continue;
    observed.others.push_back(
        {FullName(*other), ServedNames(*other), other->metadata().creation_timestamp()});
  }
  if (const std::string claim = ClaimOf(*model); !claim.empty()) {
    const bool found = informers.claims.store().Get({key.ns, claim}) != nullptr;
    observed.claim = found ? ClaimState::kFound : ClaimState::kMissing;
  }
  observed.groups = ObserveGroups(informers, joins, *model);
  return observed;
}

}  // namespace rempart::op
