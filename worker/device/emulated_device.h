// SPDX-License-Identifier: Apache-2.0
// A device that runs the CUDA kernels on the CPU (kernels/cuda/emulator.h), for tests of all that
// is built on a device. Its memory is host memory with a limit; work is done when it is queued, or
// when it is waited for (Defer), and a graph remembers what to do. Like the real one it counts what
// a step must not do: see allocations() and waits().
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/blas_products.h"
#include "worker/device/device.h"

namespace rempart::worker {

class EmulatedDevice : public Device {
 public:
  explicit EmulatedDevice(int64_t memory_bytes) : total_(memory_bytes) {}
  ~EmulatedDevice() override;

  std::string Describe() const override;
  const kernels::DeviceOps& ops() const override;
  kernels::DeviceStream stream() const override { return nullptr; }
  absl::StatusOr<DeviceMemory> Memory() const override;
  absl::StatusOr<void*> Allocate(int64_t bytes) override;
  void Free(void* memory) override;
  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override;
  void FreePinned(void* memory) override;
  absl::StatusOr<Shared> ShareMemory(int64_t bytes) override;
  absl::StatusOr<void*> OpenShared(const MemoryShare& share) override;
  void CloseShared(void*) override { --opened_; }
  void CopyIn(void* device, const void* host, int64_t bytes) override;
  void CopyOut(void* host, const void* device, int64_t bytes) override;
  absl::Status Matmul(const kernels::DeviceMatmulArgs& args) override;
  kernels::ProductWay WayOf(const kernels::DeviceMatmulArgs& args) override {
    return kernels::cuda::WayOf(args, blas_.get());
  }
  bool HasLibraryFor(kernels::DeviceFormat format) const override {
    return blas_ != nullptr && blas_->Has(format);
  }
  int64_t library_products() const override { return blas_ == nullptr ? 0 : blas_->products(); }
  void Launch(std::function<void()> launch) override;
  absl::Status Try(absl::FunctionRef<void()> queue) override;
  absl::StatusOr<std::unique_ptr<DeviceGraph>> Record(
      absl::FunctionRef<absl::Status()> record) override;
  absl::Status Start(DeviceGraph& graph) override;
  absl::Status Check() override { return broken_; }
  absl::Status Finish() override;
  void Mark(int place) override { marks_[place] = done_ + static_cast<int64_t>(pending_.size()); }
  absl::Status Await(int place) override;

  // From now on work is done when somebody waits for it, and not before: what a host writes too
  // early, or reads, is then wrong as it would be on a GPU.
  void Defer() { defers_ = true; }
  // As at first; nothing is left to do.
  void WorkAtOnce() { defers_ = false; }
  // As where memory has run out: so many graphs are not recorded from now on.
  void RefuseGraphs(int64_t count) { refused_graphs_ = count; }
  // What the next Try comes to. Of a device that it breaks every Check and wait does from then on.
  void FailNextTry(const absl::Status& error, bool breaks) {
    try_error_ = error;
    try_breaks_ = breaks;
  }
  // Does the work, or keeps it: for a graph, or until somebody waits.
  void Queue(std::function<void()> work) const;
  // Does or keeps one of the ops.
  void QueueOp(const char* op, std::function<void()> work) const;
  // Of what is kept until somebody waits: pieces of work.
  int64_t pending() const { return static_cast<int64_t>(pending_.size()); }
  // As where GPUs have no way to each other; before anybody asks.
  void CutOff() { is_cut_off_ = true; }

  // From now on products of many tokens are given to a library first, as on a GPU. Its room is not
  // of this device's memory.
  void UseBlas(std::unique_ptr<kernels::cuda::BlasProducts> blas) { blas_ = std::move(blas); }

  // Bytes of Allocate; what is shared stays with the device.
  int64_t used_bytes() const { return used_; }
  int64_t allocations() const { return allocations_; }
  int64_t waits() const { return waits_; }
  int64_t graphs() const { return graphs_; }
  int64_t graphs_alive() const { return *graphs_alive_; }
  // Ops that were in a graph before they had ever run: a GPU loads a kernel when it is first
  // started, which no recording allows.
  const std::set<std::string>& recorded_unloaded() const { return recorded_unloaded_; }
  int64_t shares_opened() const { return opened_; }

 private:
  void RunTo(int64_t count);

  const int64_t total_;
  int64_t used_ = 0;
  int64_t allocations_ = 0;
  int64_t waits_ = 0;
  int64_t graphs_ = 0;
  std::shared_ptr<int64_t> graphs_alive_ = std::make_shared<int64_t>(0);
  int64_t refused_graphs_ = 0;
  absl::Status try_error_;
  bool try_breaks_ = false;
  absl::Status broken_;
  mutable std::set<std::string> loaded_, recorded_unloaded_;
  int64_t opened_ = 0;
  bool is_cut_off_ = false;
  std::unique_ptr<kernels::cuda::BlasProducts> blas_;
  void* shared_ = nullptr;
  std::map<void*, int64_t> sizes_;
  bool defers_ = false;
  mutable std::deque<std::function<void()>> pending_;
  int64_t done_ = 0;  // of what was ever pending
  std::array<int64_t, kMarks> marks_ = {};
};

}  // namespace rempart::worker
