// SPDX-License-Identifier: Apache-2.0
// From the membership of an epoch to the communicators of the ranks of one pod. Ranks of a pod talk
// through memory, those of different pods over TCP.
//
// Links between pods are encrypted: activations reveal prompts. Only when every pod is on loopback
// do they go plain.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/comm/link_listener.h"
#include "worker/comm/mesh_communicator.h"

namespace rempart::worker {

enum class LinkProtection { kByAddress, kEncrypted, kPlain };

struct GroupEpoch {
  int32_t epoch = 0;
  std::string key;  // 32 bytes, of this epoch alone
  int pod_index = 0;
  int ranks_per_pod = 1;                    // rank r lives in pod r / ranks_per_pod
  std::vector<std::string> data_addresses;  // by pod; those of other pods' LinkListeners
  LinkProtection protection = LinkProtection::kByAddress;
};

// One communicator for each rank of this pod, once all links stand. `listener` may be null in a
// group of one pod, and lets in nobody afterwards. Errors name the rank and the address that could
// not be linked, and why: DeadlineExceeded after `timeout`, Cancelled when `stop` was asked for,
// InvalidArgument for an impossible membership.
absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectGroup(
    LinkListener* listener, const GroupEpoch& group, const CommunicatorOptions& options,
    std::chrono::milliseconds timeout, const std::stop_token& stop);

}  // namespace rempart::worker
