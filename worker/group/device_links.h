// SPDX-License-Identifier: Apache-2.0
// From the id of an epoch's device communicators to those of the ranks of this pod. Pods and ranks
// of one pod are the same to it.
#pragma once

#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/comm/device_communicator.h"
#include "worker/group/rank_threads.h"

namespace rempart::worker {

// Each rank's model has its communicator, in the order of `ranks`, once this returns; and so has
// every other rank of the group. An error of any rank takes them away again. Cancelled when `stop`
// was asked for.
absl::StatusOr<std::vector<std::unique_ptr<DeviceCommunicator>>> LinkDevices(
    CollectiveLibrary& library, const std::string& id, const std::vector<LocalRank>& ranks,
    const DeviceCommunicatorOptions& options, const std::stop_token& stop);

}  // namespace rempart::worker
