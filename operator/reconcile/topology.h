// SPDX-License-Identifier: Apache-2.0
// What routers shall know, from what the stores hold. Pure. Of a group of several pods they know
// the leader.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "operator/kube/resource.h"
#include "proto/k8s/v1/objects.pb.h"
#include "proto/serving/v1alpha1/model.pb.h"
#include "proto/topology/v1/topology.pb.h"

namespace rempart::op {

struct LeaderWord {
  int32_t epoch = 0;  // 0: not known
  // Its own word goes before that of its kubelet, which looks every few seconds.
  std::string pod_name;  // empty: no stream tells
  bool ready = false;
  bool draining = false;
};

struct TopologySources {
  std::vector<std::shared_ptr<const serving::v1alpha1::Model>> models;
  // Workers of a Model.
  std::function<std::vector<std::shared_ptr<const k8s::v1::Pod>>(const ObjectKey& model)> pods;
  // Configurations of its groups that exist.
  std::function<std::vector<std::shared_ptr<const k8s::v1::ConfigMap>>(const ObjectKey& model)>
      config_maps;
  // What the leader of a group ("namespace/model-0") says.
  std::function<LeaderWord(const std::string& group)> leader;
};

// Without a version. A Model is listed when it has been accepted; after a refused edit it keeps the
// names under which its groups still serve.
topology::v1::Snapshot MakeSnapshot(const TopologySources& sources);

bool PodIsReady(const k8s::v1::Pod& pod);

}  // namespace rempart::op
