// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/triggers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "operator/plan/plan.h"

namespace rempart::op {

Triggers::Triggers(Informers* informers, NodeLedger* ledger, WorkQueue* queue,
                   TopologyCache* topology)
    : informers_(informers), ledger_(ledger), queue_(queue), topology_(topology) {
  Connect();
}

void Triggers::Connect() {
  const auto owned = [this](const auto& object) { OnOwned(object.metadata()); };
  informers_->stateful_sets.OnChange(owned);
  informers_->services.OnChange(owned);
  informers_->budgets.OnChange(owned);
  informers_->policies.OnChange(owned);
  informers_->config_maps.OnChange([this](const k8s::v1::ConfigMap& config_map) {
    OnOwned(config_map.metadata());
    topology_->Touch(OwnerOf(config_map.metadata()));
  });
  informers_->models.OnChange([this](const Model& model) { OnModel(model); });
  informers_->pods.OnChange([this](const k8s::v1::Pod& pod) { OnPod(pod); });
  informers_->other_pods.OnChange([this](const k8s::v1::Pod& pod) {
    ledger_->OnPod(pod, !informers_->other_pods.store().Has(KeyOf(pod)));
  });
  informers_->nodes.OnChange([this](const k8s::v1::Node& node) { OnNode(node); });
  informers_->claims.OnChange(
      [this](const k8s::v1::PersistentVolumeClaim& claim) { AddAll(ClaimWord(KeyOf(claim))); });
}

void Triggers::AddAll(const std::string& word) {
  for (const ObjectKey& model : informers_->models.store().Keys(word)) queue_->Add(model);
}

void Triggers::OnOwned(const k8s::v1::ObjectMeta& metadata) {
  const ObjectKey owner = OwnerOf(metadata);
  if (!owner.name.empty()) queue_->Add(owner, kGather);
}

void Triggers::OnPod(const k8s::v1::Pod& pod) {
  ledger_->OnPod(pod, !informers_->pods.store().Has(KeyOf(pod)));
  const ObjectKey owner = OwnerOf(pod.metadata());
  if (owner.name.empty()) return;
  topology_->Touch(owner);
  queue_->Add(owner, IsHeldBack(pod) ? absl::ZeroDuration() : kGather);
}

void Triggers::OnNode(const k8s::v1::Node& node) {
  ledger_->OnNode(node);
  const std::string& name = node.metadata().name();
  NodeObservation seen = ObserveNode(node, *ledger_);
  seen.requested.clear();
  seen.pods = 0;
  const bool gone = !informers_->nodes.store().Has(KeyOf(node));
  const auto known = nodes_.find(name);
  if (!gone && known != nodes_.end() && known->second == seen) return;
  gone ? void(nodes_.erase(name)) : void(nodes_[name] = std::move(seen));
  for (const auto& pod : informers_->pods.store().Find(NodeWord(name))) {
    const ObjectKey owner = OwnerOf(pod->metadata());
    if (!owner.name.empty()) queue_->Add(owner);
  }
}

void Triggers::OnModel(const Model& model) {
  const ObjectKey key = KeyOf(model);
  topology_->Touch(key);
  const bool gone = !informers_->models.store().Has(key);
  const std::string version =
      gone ? "" : absl::StrCat(model.metadata().uid(), " ", model.metadata().generation());
  const auto known = models_.find(key);
  // Its status, which is ours, or its labels.
  if (known != models_.end() && known->second.version == version) return queue_->Add(key, kGather);
  // Somebody waits for an edit; nobody for what the first list shows.
  informers_->models.synced() ? queue_->AddUrgent(key) : queue_->Add(key);
  const std::vector<std::string> names = gone ? std::vector<std::string>() : ServedNames(model);
  for (const std::string& name : names) AddAll(NameWord(name));
  if (known != models_.end()) {
    for (const std::string& name : known->second.names) AddAll(NameWord(name));
  }
  gone ? void(models_.erase(key)) : void(models_[key] = {version, names});
}

void Triggers::OnJoin(const std::string& group) {
  const ObjectKey key = ModelOfGroup(group);
  if (key.name.empty()) return;
  topology_->Touch(key);
  queue_->Add(key);
}

}  // namespace rempart::op
