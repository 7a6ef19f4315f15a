// SPDX-License-Identifier: Apache-2.0
// Which path is answered by what: authentication, the dialect's routes, models, health.
#pragma once

#include <functional>
#include <string>

#include "router/http/access.h"

namespace rempart::router {

// For clients: the API, and /healthz and /readyz without a key.
Handler ApiHandler(const ShardContext& shard);
// For health_address: /healthz, /readyz and /metrics.
Handler HealthHandler(const ShardContext& shard, std::function<std::string()> metrics_text);

}  // namespace rempart::router
