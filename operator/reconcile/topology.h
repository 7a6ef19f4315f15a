// SPDX-License-Identifier: Apache-2.0
// What routers shall know, from what the stores hold. Of a group of several pods they know the
// leader.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
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
  // Null when there is none.
  std::function<std::shared_ptr<const serving::v1alpha1::Model>(const ObjectKey& model)> model;
  // Workers of a Model.
  std::function<std::vector<std::shared_ptr<const k8s::v1::Pod>>(const ObjectKey& model)> pods;
  // Configurations of its groups that exist.
  std::function<std::vector<std::shared_ptr<const k8s::v1::ConfigMap>>(const ObjectKey& model)>
      config_maps;
  // What the leader of a group ("namespace/model-0") says.
  std::function<LeaderWord(const std::string& group)> leader;
};

// None of a Model that routers shall not know. It is known when it has been accepted; after a
// refused edit it keeps the names under which its groups still serve. Pure.
std::optional<topology::v1::ModelEntry> MakeModelEntry(const TopologySources& sources,
                                                       const ObjectKey& key);

// The entries of all Models, of which only those are made again that something has happened to.
class TopologyCache {
 public:
  // Something has happened to this Model, its pods or its leaders. Any thread.
  void Touch(const ObjectKey& model);

  // A snapshot, without a version, when what routers shall know has changed, and the first time.
  // One thread.
  std::optional<topology::v1::Snapshot> Refresh(const TopologySources& sources);

 private:
  Mutex mu_;
  std::set<ObjectKey> touched_ ABSL_GUARDED_BY(mu_);

  // Owned by the thread that refreshes.
  std::map<ObjectKey, topology::v1::ModelEntry> entries_;
  bool made_ = false;
};

bool PodIsReady(const k8s::v1::Pod& pod);

}  // namespace rempart::op
