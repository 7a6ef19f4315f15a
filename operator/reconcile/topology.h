// SPDX-License-Identifier: Apache-2.0
// What routers shall know, from what the stores hold. Pure.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proto/k8s/v1/objects.pb.h"
#include "proto/serving/v1alpha1/model.pb.h"
#include "proto/topology/v1/topology.pb.h"

namespace rempart::op {

struct TopologySources {
  std::vector<std::shared_ptr<const serving::v1alpha1::Model>> models;
  // Workers.
  std::vector<std::shared_ptr<const k8s::v1::Pod>> pods;
  // Configurations of the groups that exist.
  std::vector<std::shared_ptr<const k8s::v1::ConfigMap>> config_maps;
  // The epoch of a group ("namespace/model-0"); 0 when it is not known.
  std::function<int32_t(const std::string& group)> epoch;
};

// Without a version. A Model is listed when it has been accepted; after a refused edit it keeps the
// names under which its groups still serve.
topology::v1::Snapshot MakeSnapshot(const TopologySources& sources);

bool PodIsReady(const k8s::v1::Pod& pod);

}  // namespace rempart::op
