// SPDX-License-Identifier: Apache-2.0
// One rank's non-blocking NCCL communicator. The thread that uses the device queues collectives and
// waits in Finish; a thread of its own asks NCCL for errors, knows the deadline, and is the only
// one that ends the communicator: ncclCommAbort may wait until graphs of its collectives are gone,
// which the other thread drops.
//
// Lock order: call_mu_ before mu_.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/mutex.h"
#include "worker/comm/device_communicator.h"
#include "worker/comm/nccl_abi.h"

namespace rempart::worker {

// The status of a result that is not a success; `comm` may be null.
absl::Status NcclError(const NcclFunctions& nccl, NcclHandle comm, absl::string_view what,
                       int result);

class NcclCommunicator : public DeviceCommunicator {
 public:
  // All outlive it.
  NcclCommunicator(const NcclFunctions& nccl, Device& device, int rank, int size,
                   const DeviceCommunicatorOptions& options);
  ~NcclCommunicator() override;

  // Once, before anything else: returns when all ranks have come.
  absl::Status Connect(const NcclUniqueId& id, const std::stop_token& stop);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllReduceSum(void* values, int64_t count, DeviceNumber type) override;
  absl::Status AllReduceNorm(const kernels::AddNormArgs& norm, int64_t num_tokens) override;
  absl::Status AllGather(const void* own, void* all, int64_t bytes) override;
  absl::StatusOr<bool> Register(void* memory, int64_t bytes) override;
  absl::Status Finish() override;
  absl::Status Await(int place) override;
  void Abort(const absl::Status& why) override { Fail(why); }
  absl::Status status() const override;

 private:
  using Clock = std::chrono::steady_clock;
  using Call = std::function<int(NcclHandle)>;

  absl::Status Queue(const char* what, Call call);
  absl::Status WithinDeadline(absl::FunctionRef<absl::Status()> wait);
  // Makes the call and waits until NCCL has taken it in: nothing else may be queued before.
  void Run(const char* what, const Call& call);
  void Settle(const char* what, Clock::time_point deadline, const std::stop_token& stop);
  // The state of what NCCL was asked to do; success when the communicator has ended.
  int State();
  // The first reason stays.
  void Fail(const absl::Status& why);
  void Watch(const std::stop_token& stop);
  void End();

  const NcclFunctions& nccl_;
  Device& device_;
  const int rank_;
  const int size_;
  const DeviceCommunicatorOptions options_;

  // NCCL takes one call at a time.
  Mutex call_mu_;
  NcclHandle comm_ ABSL_GUARDED_BY(call_mu_) = nullptr;
  NcclWindow window_ = nullptr;  // ends with the communicator; NCCL writes it while it registers

  mutable Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool failed_ ABSL_GUARDED_BY(mu_) = false;

  // Of the Finish or Await in progress, in the steady clock's ticks; 0: none.
  std::atomic<Clock::rep> deadline_ = 0;

  std::jthread watch_;  // last: starts when all is constructed
};

}  // namespace rempart::worker
