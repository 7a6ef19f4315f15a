// SPDX-License-Identifier: Apache-2.0
// Watches the GPUs of this pod's ranks through the driver's library: what they are, how they are
// linked, and what goes wrong with them. Without the library, or without a GPU, it says so once and
// the worker goes on. One thread of its own, which waits for XIDs and reads the facts every few
// seconds; what it has learned may be asked from any thread.
//
// The driver may keep a call waiting when a GPU is in trouble. The destructor waits for the thread
// for a second and leaves it behind then: what it works on is its own.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/device/gpu_health.h"

namespace rempart::worker {

// PCI addresses of the GPUs that CUDA shows, in CUDA's order, which CUDA_VISIBLE_DEVICES changes.
using GpuFinder = std::function<absl::StatusOr<std::vector<std::string>>()>;

struct GpuWatchOptions {
  GpuFinder find = {};
  // Of CUDA's GPUs: the first that a rank of this pod computes on, and how many do.
  int first_gpu = 0;
  int count = 1;
  std::string nvml_library = {};  // empty: the loader's path
  absl::Duration period = absl::Seconds(10);
};

class GpuWatch {
 public:
  // `on_broken` is called once, from the watch's thread, when a GPU of ours is broken; not while
  // the watch ends, nor after.
  GpuWatch(GpuWatchOptions options, std::function<void(const GpuFault&)> on_broken);
  ~GpuWatch();
  GpuWatch(const GpuWatch&) = delete;
  GpuWatch& operator=(const GpuWatch&) = delete;

  GpuSnapshot snapshot() const;
  // Cheaper: of the snapshot.
  int64_t version() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;  // shared with the thread alone
};

}  // namespace rempart::worker
