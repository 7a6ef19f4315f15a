// SPDX-License-Identifier: Apache-2.0
// One rank's sums in one shot, in one epoch, beside the library's communicator that does the rest.
// A thread of its own brings the end of that one, whoever noticed it, to kernels that wait for
// other ranks: they look at a word in pinned host memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "worker/comm/device_communicator.h"
#include "worker/comm/one_shot.h"

namespace rempart::worker {

class OneShotCommunicator : public DeviceCommunicator {
 public:
  // `device` and `group` outlive it. All by `library`, until Link.
  OneShotCommunicator(Device& device, Communicator& group,
                      std::unique_ptr<DeviceCommunicator> library,
                      std::chrono::milliseconds timeout, const OneShotOptions& options);
  // The graphs that hold its kernels are gone.
  ~OneShotCommunicator() override;

  // Every rank, before anything else; comes to the same on all ranks, which one_shot() says. An
  // error is the group's or the device's.
  absl::Status Link();

  int rank() const override { return library_->rank(); }
  int size() const override { return library_->size(); }
  absl::Status AllReduceSum(void* values, int64_t count, DeviceNumber type) override;
  absl::Status AllReduceNorm(const kernels::AddNormArgs& norm, int64_t num_tokens) override;
  absl::Status AllGather(const void* own, void* all, int64_t bytes) override {
    return library_->AllGather(own, all, bytes);
  }
  // Where that makes the library faster, what is small is measured anew.
  absl::StatusOr<bool> Register(void* memory, int64_t bytes) override;
  absl::Status Finish() override { return UnlessLate(library_->Finish()); }
  absl::Status Await(int place) override { return UnlessLate(library_->Await(place)); }
  void Abort(const absl::Status& why) override;
  absl::Status status() const override;
  OneShotFacts one_shot() const override { return facts_; }

 private:
  struct Offer;

  // Exchanges memory with the other ranks and proves that sums come out right. False: they do not,
  // or not every device reaches every other.
  absl::StatusOr<bool> Join();
  // The time of the fused sum of 8 KiB, 16 KiB and so on, as long as there is time left; of what
  // lies in `branch`, or of memory of its own. Then decides.
  absl::Status Measure(uint16_t* branch);

  // Fills in what this rank gives, and why it gives nothing.
  absl::Status MakeOffer(Offer& offer);
  absl::Status OpenOffers(const std::vector<Offer>& offers);
  absl::StatusOr<bool> AddsRight();
  // Whether every rank says so; what this rank has against it is kept as absence.
  // That the device is broken is an error.
  absl::StatusOr<bool> Agree(const absl::Status& mine);
  // Makes the GPU load the kernels, while nobody waits for it. One that cannot start them is left
  // as it was.
  absl::Status LoadKernels();
  absl::StatusOr<double> TimeNorm(DeviceCommunicator& way, const kernels::AddNormArgs& norm);
  // What waiting came to, unless a kernel has said meanwhile that a rank did not come.
  absl::Status UnlessLate(const absl::Status& finished) const;
  // From now on kernels wait for nobody.
  void Stop();
  uint32_t stop_word() const;
  void Watch(const std::stop_token& stop);

  Device& device_;
  Communicator& group_;
  std::unique_ptr<DeviceCommunicator> library_;
  const std::chrono::milliseconds timeout_;
  const OneShotOptions options_;

  PinnedBuffer stop_;
  std::atomic<uint32_t*> stop_word_ = nullptr;  // in stop_, for any thread, once it is there
  kernels::PeerGroup peers_;
  std::vector<void*> opened_;
  OneShotFacts facts_;  // constant once the ranks are linked

  Mutex mu_;
  bool ends_ ABSL_GUARDED_BY(mu_) = false;
  std::jthread watch_;  // starts with Join
};

}  // namespace rempart::worker
