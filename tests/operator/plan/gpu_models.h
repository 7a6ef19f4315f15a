// SPDX-License-Identifier: Apache-2.0
// Models with device: gpu, nodes that say they have GPUs, as a device plugin does for them, and
// tables of what is accepted and refused.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "operator/plan/group_objects.h"
#include "tests/operator/plan/observations.h"

namespace rempart::op {

inline Observed OneModelOnGpu() {
  Observed observed = OneModel();
  observed.model.mutable_spec()->set_device("gpu");
  return observed;
}

inline Observed OneModelOnGpus(int32_t tensor, int32_t ranks_per_pod) {
  Observed observed = OneModelOnGpu();
  auto& parallelism = *observed.model.mutable_spec()->mutable_parallelism();
  parallelism.set_tensor(tensor);
  if (ranks_per_pod > 0) parallelism.set_ranks_per_pod(ranks_per_pod);
  return observed;
}

// A node with GPUs, of which some are in use, kept for pods that want one.
inline NodeObservation GpuNode(const std::string& name, int64_t gpus, int64_t used) {
  NodeObservation node = Nodes(1)[0];
  node.name = name;
  node.allocatable["nvidia.com/gpu"] = gpus;
  node.requested["nvidia.com/gpu"] = used;
  node.taints = {{"nvidia.com/gpu", "", "NoSchedule"}};
  return node;
}

inline k8s::v1::PodSpec PodOf(const Observed& observed) {
  const GroupPlan group = MakePlan(observed).groups.at(0);
  return MakeGroupObjects(observed, group).stateful_set.spec().template_().spec();
}

struct AcceptanceRow {
  std::string what;
  void (*edit)(serving::v1alpha1::ModelSpec&);
  std::string reason;  // empty: accepted
  std::string words;
};

inline void ExpectAcceptance(const std::vector<AcceptanceRow>& rows) {
  for (const AcceptanceRow& row : rows) {
    Observed observed = OneModelOnGpu();
    row.edit(*observed.model.mutable_spec());
    const Plan plan = MakePlan(observed);
    const auto& accepted = ConditionOf(plan, "Accepted");
    EXPECT_EQ(accepted.status(), row.reason.empty() ? "True" : "False") << row.what;
    EXPECT_EQ(accepted.reason(), row.reason.empty() ? "Valid" : row.reason) << row.what;
    EXPECT_THAT(accepted.message(), ::testing::HasSubstr(row.words)) << row.what;
    EXPECT_EQ(plan.groups.empty(), !row.reason.empty()) << row.what;
  }
}

}  // namespace rempart::op
