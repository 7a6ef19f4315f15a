// SPDX-License-Identifier: Apache-2.0
// Snapshots that the tables of plan_test and status_test start from.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
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
  return observed;
}

// A group as it looks when it serves with the configuration that `observed` asks for.
inline GroupObservation Serving(const Observed& observed, int32_t index) {
  Observed enough = observed;
  enough.model.mutable_spec()->set_replicas(index + 1);
  GroupObservation group;
  group.index = index;
  group.exists = true;
  group.config_hash = MakePlan(enough).groups.at(index).config_hash;
  group.progress.phase = WorkerPhase::kReady;
  PodObservation pod;
  pod.name = absl::StrCat("smollm2-", index, "-0");
  pod.phase = "Running";
  pod.ready = true;
  group.pods.push_back(pod);
  return group;
}

inline const serving::v1alpha1::Condition& ConditionOf(const Plan& plan, const std::string& type) {
  for (const auto& condition : plan.status.conditions()) {
    if (condition.type() == type) return condition;
  }
  static const serving::v1alpha1::Condition kNone;
  return kNone;
}

}  // namespace rempart::op
