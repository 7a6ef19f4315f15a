// SPDX-License-Identifier: Apache-2.0
// Which change leads to which Model being looked at again, and how soon. Handlers run on the
// threads of the informers and of the Join streams; each decides nothing but that.
// 1. An edit is urgent: somebody waits for it.
// 2. What a member says or fails to say on Join, and a pod that waits at our gate, is looked at at
//    once: a group waits for it to come back.
// 3. Whatever else changes about a Model's objects waits for more of its kind, for at most kGather:
//    while ten pods are replaced, the API server tells of a hundred changes, and a plan is made
//    from all there is.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "operator/kube/work_queue.h"
#include "operator/reconcile/node_ledger.h"
#include "operator/reconcile/observe.h"
#include "operator/reconcile/topology.h"

namespace rempart::op {

class Triggers {
 public:
  static constexpr absl::Duration kGather = absl::Milliseconds(200);

  // All pointers outlive it. Connects itself: before the informers run.
  Triggers(Informers* informers, NodeLedger* ledger, WorkQueue* queue, TopologyCache* topology);

  // A Model that comes, goes or is edited may free or take a served name of another.
  void OnModel(const Model& model);
  void OnPod(const k8s::v1::Pod& pod);
  // A StatefulSet, a Service and the like.
  void OnOwned(const k8s::v1::ObjectMeta& metadata);
  // What kubelets write every few minutes changes nothing.
  void OnNode(const k8s::v1::Node& node);
  // Of a group ("namespace/model-0") a word on Join, or the silence of a member.
  void OnJoin(const std::string& group);

 private:
  struct KnownModel {
    std::string version;
    std::vector<std::string> names;
  };

  void Connect();
  void AddAll(const std::string& word);  // Models that have it

  Informers* const informers_;
  NodeLedger* const ledger_;
  WorkQueue* const queue_;
  TopologyCache* const topology_;
  std::map<ObjectKey, KnownModel> models_;        // owned by the models' informer
  std::map<std::string, NodeObservation> nodes_;  // owned by the nodes' informer
};

}  // namespace rempart::op
