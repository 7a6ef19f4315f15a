// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/controller.h"

#include "common/log.h"

namespace rempart::op {

namespace {

void ReconcileOne(WorkQueue& queue, const ObjectKey& key, const Reconcile& reconcile) {
  const absl::StatusOr<absl::Duration> again = reconcile(key);
  if (!again.ok()) {
    LogWarning("controller", "reconcile failed, will retry",
               {{"object", key.ToString()}, {"error", again.status().message()}});
    queue.Retry(key);
  } else {
    queue.Forget(key);
    if (*again < absl::InfiniteDuration()) queue.Add(key, *again);
  }
  queue.Done(key);
}

}  // namespace

void RunController(WorkQueue& queue, const Reconcile& reconcile, std::stop_token stop) {
  while (const std::optional<ObjectKey> key = queue.Take(stop)) {
    ReconcileOne(queue, *key, reconcile);
  }
}

void RunUrgentController(WorkQueue& queue, const Reconcile& reconcile, std::stop_token stop) {
  while (const std::optional<ObjectKey> key = queue.TakeUrgent(stop)) {
    ReconcileOne(queue, *key, reconcile);
  }
}

}  // namespace rempart::op
