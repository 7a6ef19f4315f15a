// SPDX-License-Identifier: Apache-2.0
// The part of benchmarks/gpu/run that shows where the microseconds of one decode step go.
//
// The step is recorded once for each of its ops, cut short after it, and timed: what an op takes is
// how much longer the graph is with it. So every op runs between its own neighbours, with the
// caches as they leave them, the gaps between kernels are counted, and the parts add up to the
// step. Events between kernels would add to what they measure, and a profiler is another program.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/gpu/parts.h"
#include "benchmarks/gpu/result.h"
#include "worker/device/device.h"

namespace rempart::benchmarks {

// One op of a step: its name, with the shape of a product and what computes it ("product 6144x4096
// by cuBLASLt"), and the bytes of a product's weights.
struct StepOp {
  std::string name;
  int64_t weight_bytes = 0;
  double micros = 0;
};

// A device that, when it is told to, times what is recorded on it op by op. In all else it is the
// device behind it.
class ProfilingDevice : public worker::Device {
 public:
  explicit ProfilingDevice(std::unique_ptr<worker::Device> device) : device_(std::move(device)) {}

  // Of what is recorded from now on, each graph is started so often. 0: none.
  void TimeRecords(int repeats) {
    repeats_ = repeats;
    if (repeats > 0) step_.clear();
  }
  // Of the last record that was timed, in order, up to the op that changes the step's inputs.
  // Empty: none was.
  const std::vector<StepOp>& step() const { return step_; }

  std::string Describe() const override { return device_->Describe(); }
  const kernels::DeviceOps& ops() const override;
  kernels::DeviceStream stream() const override { return device_->stream(); }
  absl::StatusOr<worker::DeviceMemory> Memory() const override { return device_->Memory(); }
  absl::StatusOr<void*> Allocate(int64_t bytes) override { return device_->Allocate(bytes); }
  void Free(void* memory) override { device_->Free(memory); }
  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override {
    return device_->AllocatePinned(bytes);
  }
  void FreePinned(void* memory) override { device_->FreePinned(memory); }
  absl::StatusOr<Shared> ShareMemory(int64_t bytes) override { return device_->ShareMemory(bytes); }
  absl::StatusOr<void*> OpenShared(const worker::MemoryShare& share) override {
    return device_->OpenShared(share);
  }
  void CloseShared(void* opened) override { device_->CloseShared(opened); }
  void CopyIn(void* device, const void* host, int64_t bytes) override {
    device_->CopyIn(device, host, bytes);
  }
  void CopyOut(void* host, const void* device, int64_t bytes) override {
    device_->CopyOut(host, device, bytes);
  }
  absl::Status Matmul(const kernels::DeviceMatmulArgs& args) override;
  kernels::ProductWay WayOf(const kernels::DeviceMatmulArgs& args) override {
    return device_->WayOf(args);
  }
  void Launch(std::function<void()> launch) override { device_->Launch(std::move(launch)); }
  absl::Status Try(absl::FunctionRef<void()> queue) override { return device_->Try(queue); }
  absl::StatusOr<std::unique_ptr<worker::DeviceGraph>> Record(
      absl::FunctionRef<absl::Status()> record) override;
  absl::Status Start(worker::DeviceGraph& graph) override { return device_->Start(graph); }
  absl::Status Check() override { return device_->Check(); }
  absl::Status Finish() override { return device_->Finish(); }
  void Mark(int place) override { device_->Mark(place); }
  absl::Status Await(int place) override { return device_->Await(place); }

  // Of the table that ops() gives: true when the op shall run. Counts it.
  bool Takes(const std::string& name, int64_t weight_bytes) const;
  const kernels::DeviceOps& behind() const { return device_->ops(); }

 private:
  // Seconds of the first `ops` of what `record` queues.
  absl::StatusOr<double> TimeFirst(absl::FunctionRef<absl::Status()> record, int64_t ops);

  const std::unique_ptr<worker::Device> device_;
  int repeats_ = 0;
  int64_t most_ops_ = -1;  // of a record; -1: all
  std::vector<StepOp> step_;
  mutable std::vector<StepOp> seen_;  // in this record
};

struct ProfileSizes {
  std::vector<int64_t> batches = {1, 64};
  int64_t prompt_tokens = 128;  // of each sequence
  int64_t steps = 64;           // of the whole step's time
  int repeats = 5;              // of each graph, of which the median counts
};

// Of a model of this shape: every kind of op by what it takes of a step, and the step.
absl::StatusOr<PartResult> MeasureProfile(const DeviceOpener& open,
                                          const worker::ModelConfig& config,
                                          const worker::DeviceModelOptions& options,
                                          const ProfileSizes& sizes);

}  // namespace rempart::benchmarks
