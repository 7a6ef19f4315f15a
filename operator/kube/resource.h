// SPDX-License-Identifier: Apache-2.0
// The resource types that the operator deals with, and the paths of their objects.
#pragma once

#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/k8s/v1/objects.pb.h"
#include "proto/serving/v1alpha1/model.pb.h"

namespace rempart::op {

// The only thing of an object that travels through queues.
struct ObjectKey {
  std::string ns;
  std::string name;

  friend bool operator==(const ObjectKey& a, const ObjectKey& b) {
    return std::tie(a.ns, a.name) == std::tie(b.ns, b.name);
  }
  friend bool operator<(const ObjectKey& a, const ObjectKey& b) {
    return std::tie(a.ns, a.name) < std::tie(b.ns, b.name);
  }
  std::string ToString() const { return absl::StrCat(ns, "/", name); }
};

struct ResourceType {
  absl::string_view group;  // empty: the core group
  absl::string_view version;
  absl::string_view plural;
  absl::string_view kind;

  std::string ApiVersion() const {
    return group.empty() ? std::string(version) : absl::StrCat(group, "/", version);
  }
  // Of the collection in a namespace; of all namespaces when it is empty.
  std::string Path(absl::string_view ns) const {
    return absl::StrCat(group.empty() ? "/api/" : "/apis/", ApiVersion(),
                        ns.empty() ? "" : "/namespaces/", ns, "/", plural);
  }
};

// The type of objects of the protobuf message T.
template <typename T>
struct ResourceOf;

#define REMPART_RESOURCE(message, group, version, plural)                     \
  template <>                                                                 \
  struct ResourceOf<message> {                                                \
    static ResourceType Type() {                                              \
      return {group, version, plural, message::descriptor()->name().c_str()}; \
    }                                                                         \
  }
REMPART_RESOURCE(serving::v1alpha1::Model, "serving.rempart.dev", "v1alpha1", "models");
REMPART_RESOURCE(k8s::v1::StatefulSet, "apps", "v1", "statefulsets");
REMPART_RESOURCE(k8s::v1::Pod, "", "v1", "pods");
REMPART_RESOURCE(k8s::v1::Service, "", "v1", "services");
REMPART_RESOURCE(k8s::v1::ConfigMap, "", "v1", "configmaps");
REMPART_RESOURCE(k8s::v1::Secret, "", "v1", "secrets");
REMPART_RESOURCE(k8s::v1::PersistentVolumeClaim, "", "v1", "persistentvolumeclaims");
REMPART_RESOURCE(k8s::v1::Node, "", "v1", "nodes");
REMPART_RESOURCE(k8s::v1::PodDisruptionBudget, "policy", "v1", "poddisruptionbudgets");
REMPART_RESOURCE(k8s::v1::NetworkPolicy, "networking.k8s.io", "v1", "networkpolicies");
REMPART_RESOURCE(k8s::v1::Lease, "coordination.k8s.io", "v1", "leases");
REMPART_RESOURCE(k8s::v1::Event, "", "v1", "events");
#undef REMPART_RESOURCE

template <typename T>
ObjectKey KeyOf(const T& object) {
  return {object.metadata().namespace_(), object.metadata().name()};
}

}  // namespace rempart::op
