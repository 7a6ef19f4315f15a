// SPDX-License-Identifier: Apache-2.0
// What a worker answers to /healthz and /readyz; common/health serves it.
#pragma once

#include "absl/time/time.h"
#include "common/health/health_server.h"
#include "worker/api/worker_status.h"
#include "worker/engine/engine.h"

namespace rempart::worker {

// Alive: no forward pass has been due for longer than `limit`. The body tells the age of the last
// step. Pure.
HealthReply LivenessReply(const EngineLoad& load, const StatusSnapshot& status, absl::Time now,
                          absl::Duration limit);
// Ready: a real token has passed and the worker is not draining. Pure.
HealthReply ReadinessReply(const StatusSnapshot& status);

}  // namespace rempart::worker
