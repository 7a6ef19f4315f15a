// SPDX-License-Identifier: Apache-2.0
// Model manifests from YAML files, held to the same schema as the API server holds them to: the
// bounds, patterns and defaults in proto/serving/v1alpha1/model.proto. An error names the file, the
// field and what it must be.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "operator/plan/plan.h"

namespace rempart::cli {

// All documents of `yaml`; at least one. InvalidArgument with the first problem.
absl::StatusOr<std::vector<op::Model>> ParseManifests(const std::string& yaml);
// NotFound when the file cannot be read; "-" is standard input.
absl::StatusOr<std::vector<op::Model>> ReadManifests(const std::string& path);

// What the models come to on this machine; InvalidArgument with the condition's message when one is
// refused.
absl::StatusOr<std::vector<op::Plan>> PlanLocally(const std::vector<op::Model>& models);

// What a group is on this machine: "2 rempart-worker processes of 4 ranks each".
std::string ProcessesInWords(const op::GroupPlan& group);

}  // namespace rempart::cli
