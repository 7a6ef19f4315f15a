// SPDX-License-Identifier: Apache-2.0
// Snapshots that the tables of plan_test and status_test start from.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "operator/plan/plan.h"

namespace rempart::op {

inline Observed OneModel() {
  Observed observed;
  auto& metadata = *observed.model.mutable_metadata();
  metadata.set_name("smollm2");
  metadata.set_namespace_("ia");
  metadata.set_uid("u-1");
  metadata.set_generation(3);
  metadata.set_creation_timestamp("2026-01-02T00:00:00Z");
  observed.model.mutable_spec()->mutable_source()->set_uri("pvc://models/a/smollm2.gguf");
  observed.settings.worker_image = "rempart.dev/worker:1";
  observed.settings.control_address = "operator:7080";
  observed.settings.url = "http://rempart.rempart.svc";
  observed.claim = ClaimState::kFound;
  observed.now = "2026-01-03T00:00:00Z";
  observed.now_seconds = 1767398400;
  observed.listening_seconds = 3600;
  return observed;
}

inline void Later(int32_t seconds, Observed& observed) {
  observed.now_seconds += seconds;
  observed.now = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(observed.now_seconds),
                                  absl::UTCTimeZone());
}

// Nodes node-0..., each with 4 CPU and 8 GiB.
inline std::vector<NodeObservation> Nodes(int count) {
  std::vector<NodeObservation> nodes(count);
  for (int i = 0; i < count; ++i) {
    nodes[i].name = absl::StrCat("node-", i);
    nodes[i].labels["kubernetes.io/hostname"] = nodes[i].name;
    nodes[i].allocatable = {{"cpu", 4000}, {"memory", int64_t{8} << 30}, {"pods", 110}};
  }
  return nodes;
}

// Three pods of one rank, each with 1 CPU and 2 GiB.
inline Observed OneModelOfThreePods() {
  Observed observed = OneModel();
  observed.model.mutable_spec()->mutable_parallelism()->set_tensor(3);
  observed.model.mutable_spec()->mutable_parallelism()->set_ranks_per_pod(1);
  auto& requests = *observed.model.mutable_spec()->mutable_resources()->mutable_requests();
  requests["cpu"] = "1";
  requests["memory"] = "2Gi";
  observed.nodes = Nodes(3);
  return observed;
}

// A group as it looks when it serves with the configuration that `observed` asks for.
inline GroupObservation Serving(const Observed& observed, int32_t index) {
  Observed enough = observed;
  enough.model.mutable_spec()->set_replicas(index + 1);
  GroupObservation group;
  group.index = index;
  group.exists = true;
  enough.groups.clear();
  const GroupPlan plan = MakePlan(enough).groups.at(index);
  group.config_hash = plan.config_hash;
  group.set_config_hash = plan.config_hash;
  group.set_is_current = true;
  group.progress.phase = WorkerPhase::kReady;
  for (int32_t i = 0; i < plan.pod_count; ++i) {
    PodObservation pod;
    pod.name = absl::StrCat("smollm2-", index, "-", i);
    pod.uid = absl::StrCat("uid-", index, "-", i);
    pod.index = i;
    pod.node = absl::StrCat("node-", i);
    pod.config_hash = plan.config_hash;
    pod.phase = "Running";
    pod.age_seconds = 600;
    pod.ready = true;
    group.pods.push_back(pod);
    MemberObservation member;
    member.pod_index = i;
    member.pod = pod.name;
    member.node = pod.node;
    member.connected = true;
    member.phase = WorkerPhase::kReady;
    member.epoch = 7;
    member.first_rank = i * plan.ranks_per_pod;
    group.members.members.push_back(member);
  }
  group.members.epoch = 7;
  group.members.running = true;
  return group;
}

// `replicas` groups serve; what they serve with is the last good configuration.
inline Observed Settled(int32_t replicas) {
  Observed observed = OneModel();
  observed.model.mutable_spec()->set_replicas(replicas);
  for (int32_t i = 0; i < replicas; ++i) observed.groups.push_back(Serving(observed, i));
  const Plan plan = MakePlan(observed);
  observed.last_good = *plan.last_good;
  *observed.model.mutable_status() = plan.status;
  return observed;
}

inline void Edit(Observed& observed, int32_t context_length = 4096) {
  observed.model.mutable_spec()->mutable_engine()->set_context_length(context_length);
}

inline const serving::v1alpha1::Condition& ConditionOf(const Plan& plan, const std::string& type) {
  for (const auto& condition : plan.status.conditions()) {
    if (condition.type() == type) return condition;
  }
  static const serving::v1alpha1::Condition kNone;
  return kNone;
}

}  // namespace rempart::op
