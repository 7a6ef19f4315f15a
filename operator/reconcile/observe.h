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
#include "operator/streams/join_registry.h"

namespace rempart::op {

inline constexpr char kManagedSelector[] = "app.kubernetes.io/managed-by=rempart-operator";

// Everything that the operator watches.
struct Informers {
  explicit Informers(const Client* client, ReflectorOptions options = {});

  Informer<serving::v1alpha1::Model> models;
  Informer<k8s::v1::StatefulSet> stateful_sets;
  Informer<k8s::v1::Pod> pods;
  Informer<k8s::v1::Service> services;
  Informer<k8s::v1::ConfigMap> config_maps;
  Informer<k8s::v1::PersistentVolumeClaim> claims;

  bool synced() const;
  // The names of those that are not yet.
  std::string Unsynced() const;
};

// None when there is no such Model, or it is being deleted.
std::optional<Observed> Observe(const Informers& informers, const JoinRegistry& joins,
                                const Settings& settings, const ObjectKey& key, absl::Time now);

// The Model that owns a labelled object; an empty name when none does.
ObjectKey OwnerOf(const k8s::v1::ObjectMeta& metadata);
// Of a group "namespace/model-0".
ObjectKey ModelOfGroup(const std::string& group);

}  // namespace rempart::op
