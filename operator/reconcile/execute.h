// SPDX-License-Identifier: Apache-2.0
// Carries a Plan out on the Kubernetes API: applies what is planned, deletes what is not, writes
// the status, records events. One thread calls it.
//
// What is in the cluster already as the plan states it is not written again, whoever wrote it
// (operator/reconcile/intent.h). A store may lag behind what this process has just written: what it
// wrote itself, and the store does not show yet, counts as there.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "operator/kube/client.h"
#include "operator/kube/events.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/plan.h"
#include "operator/reconcile/observe.h"

namespace rempart::op {

class Executor {
 public:
  // `joins` carries the orders to drain. `own_namespace` holds the Secret rempart-worker-tls that
  // is copied beside the workers; empty: the workers' namespaces have it already. All pointers
  // outlive the executor.
  Executor(const Client* client, const Informers* informers, NodeLedger* ledger,
           JoinRegistry* joins, EventRecorder* events, const Clock* clock,
           std::string own_namespace);

  // When to look again though nothing changes; infinite: only after a change.
  absl::StatusOr<absl::Duration> Execute(const Observed& observed, const Plan& plan);
  // The Model is gone.
  void Forget(const ObjectKey& model);

 private:
  struct Applied {
    std::string digest;            // of the intent
    std::string resource_version;  // of the object, as it came back
    std::string content_version;   // moves only when somebody changes what we apply
    absl::Time at = absl::InfinitePast();
  };
  using AppliedOfModel = std::map<std::string, Applied>;  // by kind and name

  absl::Status ApplyGroup(const Observed& observed, const GroupPlan& group);
  absl::Status ApplyOfModel(const Observed& observed, const Plan& plan);
  // Of a StatefulSet that an earlier version made: the API server takes OnDelete only together with
  // the removal of what RollingUpdate had.
  absl::Status TakeOverReplacing(const k8s::v1::StatefulSet& intent);
  absl::Status Release(const std::string& ns, const PodRelease& release);
  absl::Status DeletePod(const std::string& ns, const PodDeletion& deletion);
  void RemoveGroup(const Observed& observed, const std::string& name, absl::Status& result);
  template <typename T>
  absl::Status Apply(const Model& owner, const Store<T>& store, T intent);
  template <typename T>
  bool IsApplied(const T* there, const T& intent, const Applied& last, const std::string& digest);
  template <typename T>
  absl::Status Remove(const Model& owner, const Store<T>& store, const ObjectKey& key);
  // The workers' certificate, owned by all Models of the namespace: it goes with the last of them.
  absl::Status CopyWorkerTls(const Model& model);
  absl::Status WriteStatus(const Observed& observed, const Plan& plan);

  const Client* const client_;
  const Informers* const informers_;
  NodeLedger* const ledger_;
  JoinRegistry* const joins_;
  EventRecorder* const events_;
  const Clock* const clock_;
  const std::string own_namespace_;
  std::map<ObjectKey, AppliedOfModel> applied_;  // by Model
  bool lagged_ = false;                          // in this Execute: a store was behind our writes
  // Whom the copied certificate of a namespace belongs to, by uid, and when that was last written.
  std::map<std::string, std::map<std::string, absl::Time>> tls_owners_;
};

// Whether two statuses differ in more than steps and ages, which change all the time.
bool StatusDiffers(ModelStatus a, ModelStatus b);

}  // namespace rempart::op
