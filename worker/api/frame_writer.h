// SPDX-License-Identifier: Apache-2.0
// The border for answers: engine structs become protobuf. Pure.
#pragma once

#include <cstdint>

#include "proto/worker/v1/worker.pb.h"
#include "worker/engine/engine.h"

namespace rempart::worker {

void WriteDelta(const SequenceDelta& delta, uint64_t request_id, const Vocabulary& vocabulary,
                v1::Delta* out);
void WriteFailure(const Failure& failure, v1::Failure* out);
// All of Load but starts_seen, which belongs to a stream.
void WriteLoad(const EngineLoad& load, v1::Load* out);

}  // namespace rempart::worker
