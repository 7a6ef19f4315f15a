// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/topology.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "operator/kube/client.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/plan.h"
#include "proto/worker/v1/config.pb.h"

namespace rempart::op {
namespace {

constexpr char kAttachPort[] = ":7070";

std::string Label(const k8s::v1::ObjectMeta& metadata, const char* name) {
  const auto found = metadata.labels().find(name);
  return found == metadata.labels().end() ? "" : found->second;
}

bool IsAccepted(const Model& model) {
  for (const auto& condition : model.status().conditions()) {
    if (condition.type() == "Accepted") return condition.status() == "True";
  }
  return false;
}

std::string Address(const std::string& ip) {
  return absl::StrContains(ip, ':') ? absl::StrCat("[", ip, "]", kAttachPort)
                                    : absl::StrCat(ip, kAttachPort);
}

int64_t UnixSeconds(const std::string& timestamp) {
  absl::Time time;
  std::string error;
  return absl::ParseTime(absl::RFC3339_full, timestamp, &time, &error) ? absl::ToUnixSeconds(time)
                                                                       : 0;
}

// The names in the configurations of the groups that exist.
std::set<std::string> NamesBeingServed(const TopologySources& sources, const ObjectKey& model) {
  std::set<std::string> names;
  for (const auto& config_map : sources.config_maps(model)) {
    const auto text = config_map->data().find("worker.json");
    worker::v1::WorkerConfig config;
    if (text == config_map->data().end() || !FromJson(text->second, config).ok()) continue;
    names.insert(config.served_names().begin(), config.served_names().end());
  }
  return names;
}

bool Leads(const k8s::v1::Pod& pod) {
  return absl::EndsWith(pod.metadata().name(), "-0") && !pod.status().pod_ip().empty();
}

void AddGroup(const TopologySources& sources, const k8s::v1::Pod& pod,
              topology::v1::ModelEntry& entry) {
  topology::v1::GroupEntry& group = *entry.add_groups();
  group.set_group_name(
      absl::StrCat(pod.metadata().namespace_(), "/", Label(pod.metadata(), kGroupLabel)));
  const LeaderWord word = sources.leader(group.group_name());
  const bool leaves = !pod.metadata().deletion_timestamp().empty();
  const bool tells = word.pod_name == pod.metadata().name() && !leaves;
  group.set_address(Address(pod.status().pod_ip()));
  group.set_epoch(word.epoch);
  group.set_ready(tells ? word.ready : PodIsReady(pod));
  group.set_draining(leaves || (tells && word.draining));
}

}  // namespace

bool PodIsReady(const k8s::v1::Pod& pod) {
  if (!pod.metadata().deletion_timestamp().empty()) return false;
  return std::any_of(pod.status().conditions().begin(), pod.status().conditions().end(),
                     [](const auto& condition) {
                       return condition.type() == "Ready" && condition.status() == "True";
                     });
}

std::optional<topology::v1::ModelEntry> MakeModelEntry(const TopologySources& sources,
                                                       const ObjectKey& key) {
  const auto model = sources.model(key);
  if (model == nullptr || !model->metadata().deletion_timestamp().empty()) return std::nullopt;
  std::vector<std::string> names;
  if (IsAccepted(*model)) {
    names = ServedNames(*model);
  } else {
    const std::set<std::string> kept = NamesBeingServed(sources, key);
    names.assign(kept.begin(), kept.end());
  }
  if (names.empty()) return std::nullopt;
  topology::v1::ModelEntry entry;
  entry.set_model_name(FullName(*model));
  for (const std::string& name : names) entry.add_served_names(name);
  entry.set_created_unix_seconds(UnixSeconds(model->metadata().creation_timestamp()));
  entry.set_context_length(model->spec().engine().context_length());
  for (const auto& pod : sources.pods(key)) {
    if (Leads(*pod)) AddGroup(sources, *pod, entry);
  }
  return entry;
}

void TopologyCache::Touch(const ObjectKey& model) {
  MutexLock lock(&mu_);
  touched_.insert(model);
}

std::optional<topology::v1::Snapshot> TopologyCache::Refresh(const TopologySources& sources) {
  std::set<ObjectKey> touched;
  {
    MutexLock lock(&mu_);
    touched.swap(touched_);
  }
  bool changed = !std::exchange(made_, true);
  for (const ObjectKey& key : touched) {
    auto entry = MakeModelEntry(sources, key);
    if (!entry.has_value()) {
      changed |= entries_.erase(key) > 0;
      continue;
    }
    const auto known = entries_.find(key);
    if (known != entries_.end() &&
        known->second.SerializeAsString() == entry->SerializeAsString()) {
      continue;
    }
    entries_[key] = *std::move(entry);
    changed = true;
  }
  if (!changed) return std::nullopt;
  topology::v1::Snapshot snapshot;
  for (const auto& [key, entry] : entries_) *snapshot.add_models() = entry;
  return snapshot;
}

}  // namespace rempart::op
