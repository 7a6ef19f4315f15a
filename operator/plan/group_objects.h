// SPDX-License-Identifier: Apache-2.0
// The Kubernetes objects of one group: a ConfigMap with the worker's configuration, a headless
// Service, a StatefulSet and, for several pods, the NetworkPolicy of their links; and what a Model
// has once: a PodDisruptionBudget, and its last good configuration. Each states the whole intent,
// for server-side apply.
#pragma once

#include <optional>
#include <string>

#include "operator/plan/plan.h"
#include "proto/k8s/v1/objects.pb.h"

namespace rempart::op {

struct GroupObjects {
  k8s::v1::ConfigMap config_map;
  k8s::v1::Service service;
  k8s::v1::StatefulSet stateful_set;
  std::optional<k8s::v1::NetworkPolicy> network_policy;
};

// Whether the group's pods are made with a scheduling gate, to be placed all or none by a plan. A
// single pod has nothing to wait for: the scheduler places it.
bool IsGated(const GroupPlan& group);

GroupObjects MakeGroupObjects(const Observed& observed, const GroupPlan& group);

// 16 hex digits that change when the group's pods must be replaced.
std::string TemplateHash(const Observed& observed, const GroupPlan& group);

// No worker is evicted by itself: the operator moves groups off a cordoned node.
k8s::v1::PodDisruptionBudget MakeDisruptionBudget(const Model& model);
k8s::v1::ConfigMap MakeLastGoodRecord(const Model& model, const LastGood& last_good);
// None for what is no such record.
std::optional<LastGood> ReadLastGoodRecord(const k8s::v1::ConfigMap& record);
std::string LastGoodName(const Model& model);

// Label selector of all pods of a Model: "rempart.dev/model=NAME".
std::string PodSelector(const Model& model);

inline constexpr char kConfigAnnotation[] = "rempart.dev/config";
inline constexpr char kModelLabel[] = "rempart.dev/model";
inline constexpr char kPodIndexLabel[] = "apps.kubernetes.io/pod-index";
inline constexpr char kQueueLabel[] = "kueue.x-k8s.io/queue-name";
inline constexpr char kGroupLabel[] = "rempart.dev/group";
// On a claim, with the value "true": pods may keep repacked weights in it.
inline constexpr char kRepackCacheLabel[] = "rempart.dev/repack-cache";
// Where such a claim is mounted. The worker makes a folder of its own in it, which is all it
// trusts.
inline constexpr char kCacheMount[] = "/var/cache/rempart";

}  // namespace rempart::op
