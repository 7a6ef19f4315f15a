// SPDX-License-Identifier: Apache-2.0
// Steps, progress of ranks and GPUs as group/v1 spells them. Pure.
#pragma once

#include "absl/status/statusor.h"
#include "proto/group/v1/group.pb.h"
#include "worker/device/gpu_health.h"
#include "worker/group/rank_progress.h"
#include "worker/group/step.h"

namespace rempart::worker {

void WriteStep(const GroupStep& step, group::v1::ToFollower* out);
// InvalidArgument when it is no step.
absl::StatusOr<GroupStep> ReadStep(const group::v1::ToFollower& message);

void WriteRank(const RankStatus& status, group::v1::RankProgress* out);
RankStatus ReadRank(const group::v1::RankProgress& message);

void WriteGpus(const GpuSnapshot& snapshot, group::v1::GpuReport* out);

}  // namespace rempart::worker
