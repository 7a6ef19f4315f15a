// SPDX-License-Identifier: Apache-2.0
// From the ranks' communicator to one between the devices of each stage. Pods and ranks of one pod
// are the same to it.
#pragma once

#include <memory>
#include <stop_token>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/comm/device_communicator.h"
#include "worker/group/rank_threads.h"

namespace rempart::worker {

// How one rank's device talks to those that share its stage.
struct DeviceLink {
  std::unique_ptr<Communicator> stage;  // between their hosts; null where there is one stage
  std::unique_ptr<DeviceCommunicator> communicator;
  bool has_symmetric_memory = false;  // the communicator works on the model's exchange as such
};

// Each rank's model has its communicator, in the order of `ranks`, once this returns; and so has
// every other rank of the group, which is stages of `tensor` ranks, two or more. An error of any
// rank takes them away again. Cancelled when `stop` was asked for.
absl::StatusOr<std::vector<DeviceLink>> LinkDevices(CollectiveLibrary& library, int tensor,
                                                    const std::vector<LocalRank>& ranks,
                                                    const DeviceCommunicatorOptions& options,
                                                    const std::stop_token& stop);

}  // namespace rempart::worker
