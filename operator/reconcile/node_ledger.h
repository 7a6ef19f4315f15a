// SPDX-License-Identifier: Apache-2.0
// What the pods of the whole cluster request of each node, kept up to date by the informers'
// events, and what this operator has promised to pods that the informers do not show on their node
// yet. Any thread.
#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "operator/kube/resource.h"
#include "operator/plan/nodes.h"
#include "proto/k8s/v1/objects.pb.h"

namespace rempart::op {

class NodeLedger {
 public:
  void OnNode(const k8s::v1::Node& node);
  // `gone`: the pod is no longer in its store.
  void OnPod(const k8s::v1::Pod& pod, bool gone);

  // The pod has been released for the node; the promise holds until an event shows the pod there.
  void Promise(const ObjectKey& pod, const std::string& uid, const std::string& node,
               const Amounts& requests);
  // The pod was not released after all.
  void Withdraw(const ObjectKey& pod, const std::string& uid);
  // The node promised to this pod; empty: none.
  std::string PromisedNode(const ObjectKey& pod, const std::string& uid) const;

  void Fill(NodeObservation& node) const;

 private:
  struct Entry {
    std::string uid;
    std::string node;
    Amounts requests;
    bool promised = false;
  };
  struct Sum {
    Amounts requests;
    int32_t pods = 0;
  };

  void Set(const ObjectKey& pod, Entry entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Erase(const ObjectKey& pod) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  std::map<ObjectKey, Entry> pods_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Sum> sums_ ABSL_GUARDED_BY(mu_);           // by node
  std::map<std::string, std::string> hosts_ ABSL_GUARDED_BY(mu_);  // label hostname -> node
};

// What the scheduler counts for a pod.
Amounts RequestsOf(const k8s::v1::Pod& pod);

// Whether one of our gates holds it back.
bool IsHeldBack(const k8s::v1::Pod& pod);

}  // namespace rempart::op
