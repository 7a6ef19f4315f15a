// SPDX-License-Identifier: Apache-2.0
// The Kubernetes objects of one group: a ConfigMap with the worker's configuration, a headless
// Service, and a StatefulSet. Each states the whole intent, for server-side apply.
#pragma once

#include <string>

#include "operator/plan/plan.h"
#include "proto/k8s/v1/objects.pb.h"

namespace rempart::op {

struct GroupObjects {
  k8s::v1::ConfigMap config_map;
  k8s::v1::Service service;
  k8s::v1::StatefulSet stateful_set;
};

GroupObjects MakeGroupObjects(const Observed& observed, const GroupPlan& group);

// 16 hex digits that change when the group's pods must be replaced.
std::string TemplateHash(const Observed& observed, const GroupPlan& group);

// Label selector of all pods of a Model: "rempart.dev/model=NAME".
std::string PodSelector(const Model& model);

inline constexpr char kConfigAnnotation[] = "rempart.dev/config";
inline constexpr char kModelLabel[] = "rempart.dev/model";
inline constexpr char kGroupLabel[] = "rempart.dev/group";

}  // namespace rempart::op
