// SPDX-License-Identifier: Apache-2.0
// Which pod of a group a drill strikes, and the helper pod that does it on the pod's node. Pure:
// texts of the Kubernetes API in, a choice and a manifest out.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/drill/options.h"
#include "proto/k8s/v1/objects.pb.h"
#include "proto/serving/v1alpha1/model.pb.h"

namespace rempart::cli {

struct DrillTarget {
  std::string pod;
  std::string node;
  std::string model_uid;
  std::string image;  // of the worker: it is on the node already, and can strike
  std::string pull_policy;
  std::string container_id;                // without "containerd://"
  std::vector<std::string> node_networks;  // of the node's own pods
};

// The pod that holds options.rank, or the group's last. FailedPrecondition, with what to do, when
// the group does not serve whole.
absl::StatusOr<DrillTarget> ChooseTarget(const DrillOptions& options,
                                         const serving::v1alpha1::Model& model,
                                         const std::vector<k8s::v1::Pod>& pods);

// Adds what only the whole texts of the pod and its node say.
absl::Status AddFacts(const std::string& pod_json, const std::string& node_json,
                      DrillTarget& target);

// The pod named `name` that strikes. For kill-rank, freeze-rank and cut-node.
std::string HelperManifest(const DrillOptions& options, const DrillTarget& target,
                           const std::string& name);

}  // namespace rempart::cli
