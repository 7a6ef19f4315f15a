// SPDX-License-Identifier: Apache-2.0
// From the stores to what MakePlan sees of one Model.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/time/time.h"
#include "operator/kube/informer.h"
#include "operator/plan/observed.h"
#include "operator/reconcile/node_ledger.h"
#include "operator/streams/join_registry.h"

namespace rempart::op {

inline constexpr char kManagedSelector[] = "app.kubernetes.io/managed-by=rempart-operator";

// Words under which objects are found in their stores.
std::string NameWord(const std::string& served_name);
std::string NodeWord(const std::string& node);
std::string ClaimWord(const ObjectKey& claim);

// Everything that the operator watches. Found by ObjectKey::ToString of their Model: StatefulSets,
// Pods and ConfigMaps. Models are found by NameWord and ClaimWord; pods also by NodeWord.
struct Informers {
  explicit Informers(const Client* client, ReflectorOptions options = {});

  Informer<serving::v1alpha1::Model> models;
  Informer<k8s::v1::StatefulSet> stateful_sets;
  Informer<k8s::v1::Pod> pods;
  Informer<k8s::v1::Service> services;
  Informer<k8s::v1::ConfigMap> config_maps;
  Informer<k8s::v1::PersistentVolumeClaim> claims;
  Informer<k8s::v1::PodDisruptionBudget> budgets;
  Informer<k8s::v1::NetworkPolicy> policies;
  Informer<k8s::v1::Node> nodes;
  // Pods of others: what they request is not free.
  Informer<k8s::v1::Pod> other_pods;

  bool synced() const;
  // The names of those that are not yet.
  std::string Unsynced() const;
};

struct Sources {
  const Informers* informers;
  const JoinRegistry* joins;
  const NodeLedger* ledger;
  absl::Time now;            // as the API server's time stamps say it
  absl::Time measured;       // as the registry measures
  absl::Duration listening;  // since this process answers Join
};

// None when there is no such Model, or it is being deleted.
std::optional<Observed> Observe(const Sources& sources, const Settings& settings,
                                const ObjectKey& key);

NodeObservation ObserveNode(const k8s::v1::Node& node, const NodeLedger& ledger);

// The Model that owns a labelled object; an empty name when none does.
ObjectKey OwnerOf(const k8s::v1::ObjectMeta& metadata);
// Of a group "namespace/model-0".
ObjectKey ModelOfGroup(const std::string& group);

}  // namespace rempart::op
