// SPDX-License-Identifier: Apache-2.0
// Carries a Plan out on the Kubernetes API: applies what is planned, deletes what is not, writes
// the status, records events. Several threads call it, each for another Model.
//
// What is in the cluster already as the plan states it is not written again, whoever wrote it
// (operator/reconcile/intent.h). A store may lag behind what this process has just written: what it
// wrote itself, and the store does not show yet, counts as there.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/mutex.h"
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

  // When to look again though nothing changes; infinite: only after a change. What the plan
  // releases has been promised its node in the ledger (PromiseReleases).
  absl::StatusOr<absl::Duration> Execute(const Observed& observed, const Plan& plan);
  // Whether the last Execute for the Model applied anything, though it may have failed later on.
  bool HasProgressed(const ObjectKey& model) { return Known(model).progressed; }
  // The Model is gone.
  void Forget(const ObjectKey& model);

 private:
  struct Applied {
    std::string digest;            // of the intent
    std::string resource_version;  // of the object, as it came back
    std::string content_version;   // moves only when somebody changes what we apply
    absl::Time at = absl::InfinitePast();
  };
  // A Model is with one thread at a time, and so is this.
  struct AppliedOfModel {
    std::map<std::string, Applied> objects;  // by kind and name
    // Of the last Execute: a store was behind our writes; something was applied.
    bool lagged = false;
    bool progressed = false;
    absl::Time status_at = absl::InfinitePast();  // of the last write of it
    // Of pods whose end has been asked for within kLag, by uid and grace.
    std::map<std::pair<std::string, std::optional<int32_t>>, absl::Time> ending;
  };

  AppliedOfModel& Known(const ObjectKey& model);
  absl::Status ApplyGroup(const Observed& observed, const GroupPlan& group);
  absl::Status ApplyOfModel(const Observed& observed, const Plan& plan);
  // Of a StatefulSet that an earlier version made: the API server takes OnDelete only together with
  // the removal of what RollingUpdate had.
  absl::Status TakeOverReplacing(const k8s::v1::StatefulSet& intent);
  absl::Status Release(const std::string& ns, const PodRelease& release);
  // False: there is nothing to release; the next plan sees what there is.
  absl::StatusOr<bool> LiftGate(const ObjectKey& key, const PodRelease& release);
  absl::Status DeletePod(const PodDeletion& deletion, const std::string& ns, AppliedOfModel& known);
  void RemoveGroup(const Observed& observed, const std::string& name, absl::Status& result);
  template <typename T>
  absl::Status Apply(const Model& owner, const Store<T>& store, T intent);
  template <typename T>
  bool IsApplied(const T* there, const T& intent, const Applied& last, const std::string& digest,
                 bool& lagged) const;
  template <typename T>
  absl::Status Remove(const Model& owner, const Store<T>& store, const ObjectKey& key);
  // The workers' certificate, owned by all Models of the namespace: it goes with the last of them.
  absl::Status CopyWorkerTls(const Model& model);
  // How long the status has to wait; zero: it is as planned.
  absl::StatusOr<absl::Duration> WriteStatus(const Observed& observed, const Plan& plan);

  const Client* const client_;
  const Informers* const informers_;
  NodeLedger* const ledger_;
  JoinRegistry* const joins_;
  EventRecorder* const events_;
  const Clock* const clock_;
  const std::string own_namespace_;
  Mutex mu_;
  std::map<ObjectKey, AppliedOfModel> applied_ ABSL_GUARDED_BY(mu_);  // by Model
  Mutex tls_mu_;  // held while the API answers: one thread copies, the others find it done
  // Whom the copied certificate of a namespace belongs to, by uid, and when that was last written.
  std::map<std::string, std::map<std::string, absl::Time>> tls_owners_ ABSL_GUARDED_BY(tls_mu_);
};

// So that a plan made next, for another Model, does not give away the same room.
void PromiseReleases(const std::string& ns, const Plan& plan, NodeLedger& ledger);

// Whether two statuses differ in more than steps and ages, which change all the time.
bool StatusDiffers(ModelStatus a, ModelStatus b);
// Whether they differ in what a person or a later plan waits for: anything but the states of
// members, counts and explanations, which change with every pod and are written once a second.
bool StatusDiffersInSubstance(ModelStatus a, ModelStatus b);

}  // namespace rempart::op
