// SPDX-License-Identifier: Apache-2.0
// Neutral requests as the worker's Start, and the worker's deltas as neutral ones. Pure functions.
#pragma once

#include <string>

#include "proto/worker/v1/worker.pb.h"
#include "router/api/request.h"

namespace rempart::router {

// One prompt of the request; request_id and deadline_ms are left to the sender.
worker::v1::Start StartMessage(const ApiRequest& request, const Prompt& prompt,
                               const std::string& tenant);

// Text, log-probabilities and finish; the choice index is the delta's own.
ChoiceDelta ChoiceFrom(const worker::v1::Delta& delta);

}  // namespace rempart::router
