// SPDX-License-Identifier: Apache-2.0
// Takes keys from the queue and reconciles them, one after the other.
#pragma once

#include <functional>
#include <stop_token>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "operator/kube/work_queue.h"

namespace rempart::op {

// When to look again though nothing changes; infinite: only after a change. An error is retried
// with growing pauses.
using Reconcile = std::function<absl::StatusOr<absl::Duration>(const ObjectKey& key)>;

// Until a stop. Several threads may run either over one queue.
void RunController(WorkQueue& queue, const Reconcile& reconcile, std::stop_token stop);
// Of keys that are urgent, and of no others.
void RunUrgentController(WorkQueue& queue, const Reconcile& reconcile, std::stop_token stop);

}  // namespace rempart::op
