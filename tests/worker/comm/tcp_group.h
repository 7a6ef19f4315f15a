// SPDX-License-Identifier: Apache-2.0
// Groups whose pods are threads of the test, linked over TCP on loopback.
#pragma once

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/worker/comm/communicator_contract.h"
#include "worker/comm/connect.h"

namespace rempart::worker {

inline constexpr char kTestKey[] = "0123456789abcdef0123456789abcdef";

inline std::unique_ptr<LinkListener> ListenOnLoopback() {
  auto listener = LinkListener::Listen("127.0.0.1:0");
  if (!listener.ok()) {
    ADD_FAILURE() << listener.status();
    return nullptr;
  }
  return *std::move(listener);
}

inline GroupEpoch EpochOf(const std::vector<std::unique_ptr<LinkListener>>& listeners, int pod,
                          int ranks_per_pod, LinkProtection protection) {
  GroupEpoch group;
  group.epoch = 7;
  group.key = kTestKey;
  group.pod_index = pod;
  group.ranks_per_pod = ranks_per_pod;
  group.protection = protection;
  for (const auto& listener : listeners) group.data_addresses.push_back(listener->address());
  return group;
}

inline Group MakeTcpGroup(int size, int ranks_per_pod, LinkProtection protection,
                          const CommunicatorOptions& options) {
  const int pods = size / ranks_per_pod;
  std::vector<std::unique_ptr<LinkListener>> listeners;
  for (int pod = 0; pod < pods; ++pod) listeners.push_back(ListenOnLoopback());
  Group group(size);
  std::vector<std::thread> threads;
  for (int pod = 0; pod < pods; ++pod) {
    threads.emplace_back([&, pod] {
      auto ranks =
          ConnectGroup(listeners[pod].get(), EpochOf(listeners, pod, ranks_per_pod, protection),
                       options, std::chrono::minutes(1), {});
      ASSERT_TRUE(ranks.ok()) << ranks.status();
      for (auto& rank : *ranks) {
        const int index = rank->rank();
        group[index] = std::move(rank);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return group;
}

}  // namespace rempart::worker
