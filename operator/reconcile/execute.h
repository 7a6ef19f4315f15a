// SPDX-License-Identifier: Apache-2.0
// Carries a Plan out on the Kubernetes API: applies what is planned, deletes what is not, writes
// the status, records events. One thread calls it.
//
// What this process has applied already and nobody has changed since is not applied again for an
// hour; the plan states the whole intent each time all the same.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
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

  absl::Status Execute(const Observed& observed, const Plan& plan);

 private:
  struct Applied {
    std::string intent;
    std::string version;  // of the object, as it came back
    absl::Time at;
  };

  absl::Status ApplyGroup(const Observed& observed, const GroupPlan& group);
  absl::Status ApplyOfModel(const Observed& observed, const Plan& plan);
  // Of a StatefulSet that an earlier version made: the API server takes OnDelete only together with
  // the removal of what RollingUpdate had.
  absl::Status TakeOverReplacing(const k8s::v1::StatefulSet& intent);
  absl::Status Release(const std::string& ns, const PodRelease& release);
  absl::Status DeletePod(const std::string& ns, const PodDeletion& deletion);
  void RemoveGroup(const Observed& observed, const std::string& name, absl::Status& result);
  template <typename T>
  absl::Status Apply(const Model& owner, const Store<T>& store, const T& intent);
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
  std::map<std::string, Applied> applied_;  // by kind and key
  // Whom the copied certificate of a namespace belongs to, by uid, and when that was last written.
  std::map<std::string, std::map<std::string, absl::Time>> tls_owners_;
};

// Whether two statuses differ in more than steps and ages, which change all the time.
bool StatusDiffers(ModelStatus a, ModelStatus b);

}  // namespace rempart::op
