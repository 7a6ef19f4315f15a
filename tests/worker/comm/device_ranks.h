// SPDX-License-Identifier: Apache-2.0
// The ranks of a group on emulated devices, as threads of a test.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "worker/comm/device_communicator.h"
#include "worker/comm/in_process.h"
#include "worker/device/emulated_device.h"

namespace rempart::worker {

inline constexpr int64_t kRankMemory = int64_t{1} << 30;

struct DeviceRank {
  std::unique_ptr<EmulatedDevice> device;
  std::unique_ptr<DeviceCommunicator> communicator;
  absl::Status connected;
};

class DeviceRanks {
 public:
  using MakeDevice = std::function<std::unique_ptr<EmulatedDevice>(int rank)>;

  static std::unique_ptr<EmulatedDevice> Plain(int) {
    return std::make_unique<EmulatedDevice>(kRankMemory);
  }

  // Of `size` ranks the first `coming` come.
  DeviceRanks(CollectiveLibrary& library, int size, int coming,
              const DeviceCommunicatorOptions& options, const MakeDevice& make_device = Plain,
              const std::stop_token& stop = {}) {
    CommunicatorOptions host_options;
    host_options.timeout = options.timeout;
    hosts_ = CreateInProcess(size, host_options);
    auto id = library.NewId();
    EXPECT_TRUE(id.ok()) << id.status();
    if (!id.ok()) return;
    ranks_.resize(static_cast<size_t>(coming));
    for (int rank = 0; rank < coming; ++rank) ranks_[rank].device = make_device(rank);
    OnEach([&](int rank) {
      auto made = library.Connect(*ranks_[rank].device, {*id, hosts_[rank].get()}, options, stop);
      ranks_[rank].connected = made.status();
      if (made.ok()) ranks_[rank].communicator = *std::move(made);
    });
  }
  ~DeviceRanks() {
    // Each before its device and its host communicator.
    for (DeviceRank& rank : ranks_) rank.communicator.reset();
  }

  // `body` on a thread for each rank.
  void OnEach(const std::function<void(int rank)>& body) {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      threads.emplace_back([&body, rank] { body(static_cast<int>(rank)); });
    }
  }

  DeviceRank& operator[](int rank) { return ranks_[static_cast<size_t>(rank)]; }
  Communicator& host(int rank) { return *hosts_[static_cast<size_t>(rank)]; }
  bool all_connected() const {
    for (const DeviceRank& rank : ranks_) {
      if (rank.communicator == nullptr) return false;
    }
    return !ranks_.empty();
  }

 private:
  std::vector<std::unique_ptr<Communicator>> hosts_;
  std::vector<DeviceRank> ranks_;
};

}  // namespace rempart::worker
