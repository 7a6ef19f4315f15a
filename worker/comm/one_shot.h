// SPDX-License-Identifier: Apache-2.0
// Small sums in one shot: kernels of every rank that read the memory of all ranks
// (kernels/cuda/all_reduce.cu), where the ranks' devices reach each other. Larger ones, and all of
// them where the devices do not, go by the library that this one is put around
// (docs/adr/0033-one-shot-sums.md).
//
// Which messages are small is measured when the ranks are linked; all ranks come to the same
// answer. What each rank shows to the others, and whether that may be reached, they tell each other
// through the group's host communicator, which has proved who they are.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/comm/device_communicator.h"

namespace rempart::worker {

enum class OneShotUse : uint8_t {
  kMeasured,  // up to the largest message that is faster so, as all smaller ones are
  kAlways,    // up to the largest that fits
};

struct OneShotOptions {
  OneShotUse use = OneShotUse::kMeasured;
  // Of the largest message; two of them lie in each device's memory, from the first link on.
  int64_t buffer_bytes = int64_t{1} << 20;
  // No larger message is measured once so much time has passed.
  std::chrono::milliseconds measure_time{1000};
};

// The size up to which every sum in one shot was faster; 0: none was. `times` are by size.
int64_t Crossover(const std::vector<SumTime>& times);

class OneShot : public CollectiveLibrary {
 public:
  explicit OneShot(std::unique_ptr<CollectiveLibrary> library, const OneShotOptions& options = {})
      : library_(std::move(library)), options_(options) {}

  std::string Describe() const override { return library_->Describe(); }
  absl::StatusOr<void*> Allocate(Device& device, int64_t bytes) override {
    return library_->Allocate(device, bytes);
  }
  void Free(Device& device, void* memory) override { library_->Free(device, memory); }
  absl::StatusOr<std::string> NewId() override { return library_->NewId(); }
  // What it returns says in one_shot() what was found. Where devices do not reach each other, or
  // add wrongly when they do, that is no error.
  absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Connect(
      Device& device, const DevicePlace& place, const DeviceCommunicatorOptions& options,
      const std::stop_token& stop) override;

 private:
  const std::unique_ptr<CollectiveLibrary> library_;
  const OneShotOptions options_;
};

}  // namespace rempart::worker
