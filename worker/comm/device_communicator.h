// SPDX-License-Identifier: Apache-2.0
// What ranks say to each other from device memory to device memory, queued on their devices'
// streams: NCCL (nccl_library.h), or the ranks' host communicator where the host can read a
// device's memory (host_collectives.h); beside either, for small sums, what the devices read of
// each other (one_shot.h).
//
// Invariants of every implementation:
//  1. All ranks queue the same collectives in the same order with matching sizes. Results are
//     bitwise equal on all ranks.
//  2. Collectives only queue work, which may be recorded into a graph. Such a graph goes before its
//     communicator does.
//  3. Every call ends: with its result, or with an error once a deadline has passed, a rank has
//     failed, or this one was aborted. What a device computed after an error is void; its memory
//     and the weights in it stay.
//  4. A communicator lives for one epoch of its group and is never used again after an error. An
//     abort is of this rank alone: the epoch brings it to the others, through their Communicator.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/communicator.h"
#include "worker/device/device.h"

namespace rempart::worker {

enum class DeviceNumber : uint8_t { kF32, kBF16 };

// One sum of so many bytes with residual and norm, in one shot and by the library: the mean over
// all ranks.
struct SumTime {
  int64_t bytes = 0;
  double one_shot_microseconds = 0;
  double library_microseconds = 0;
};
// Which sums go in one shot, and why.
struct OneShotFacts {
  int64_t max_bytes = 0;       // those of so many bytes and fewer; 0: none
  std::string absence;         // why there can be none; else empty
  std::vector<SumTime> times;  // as measured when the ranks were linked, by size
};

class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // The thread that uses the device. values[i], of device memory, becomes the sum over all ranks.
  virtual absl::Status AllReduceSum(void* values, int64_t count, DeviceNumber type) = 0;
  // As the device's add_norm of the sum over all ranks of norm.branch, BF16 [num_tokens,
  // norm.cols], which is void afterwards. norm.rows are the same on all ranks.
  virtual absl::Status AllReduceNorm(const kernels::AddNormArgs& norm, int64_t num_tokens) = 0;
  // `all` [size, bytes] gets as row r what rank r has in `own` [bytes], which is no part of it.
  virtual absl::Status AllGather(const void* own, void* all, int64_t bytes) = 0;
  // Every rank at the same point, before its graphs: memory of CollectiveLibrary::Allocate, as much
  // on each, in which collectives lie at the same offsets on all ranks from now on. It outlives the
  // communicator. False where that makes no difference.
  virtual absl::StatusOr<bool> Register(void*, int64_t) { return false; }
  // As Device::Finish of this rank's device, but within the deadline.
  virtual absl::Status Finish() = 0;
  // As Device::Await, but within the deadline.
  virtual absl::Status Await(int place) = 0;

  // Any thread, at any time; does not wait. What is queued ends soon after, with no result.
  virtual void Abort(const absl::Status& why) = 0;
  // Any thread: OK, or why every call fails.
  virtual absl::Status status() const = 0;
  // Any thread. Of what does all by one library: nothing.
  virtual OneShotFacts one_shot() const { return {}; }
};

struct DeviceCommunicatorOptions {
  std::chrono::milliseconds connect_timeout{60'000};  // until all ranks have come
  std::chrono::milliseconds timeout{30'000};          // of one Finish or Await
};

// Which communicator: the one of this id, which rank 0 has made and brought to the others, among
// the ranks of `group`.
struct DevicePlace {
  std::string id;
  Communicator* group = nullptr;
};

// Where communicators come from. One for a process, any thread.
class CollectiveLibrary {
 public:
  virtual ~CollectiveLibrary() = default;
  // "NCCL 2.32.3".
  virtual std::string Describe() const = 0;
  // As Device::Allocate and Free, of memory that collectives are faster on once it is registered
  // (DeviceCommunicator::Register).
  virtual absl::StatusOr<void*> Allocate(Device& device, int64_t bytes) {
    return device.Allocate(bytes);
  }
  virtual void Free(Device& device, void* memory) { device.Free(memory); }
  // Rank 0, once for an epoch. Whoever knows it may join: it is a secret of the ranks it links.
  virtual absl::StatusOr<std::string> NewId() = 0;
  // Every rank, from a thread of its own, with the same id; returns once all have come, and one
  // sum has passed them. DeadlineExceeded when they do not, Cancelled when `stop` was asked for.
  virtual absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Connect(
      Device& device, const DevicePlace& place, const DeviceCommunicatorOptions& options,
      const std::stop_token& stop) = 0;
};

// Memory of a library, or of the device where there is none, freed with its owner. Both outlive it.
class CollectiveBuffer {
 public:
  CollectiveBuffer() = default;
  static absl::StatusOr<CollectiveBuffer> Make(CollectiveLibrary* library, Device& device,
                                               int64_t bytes) {
    CollectiveBuffer buffer;
    auto memory = library == nullptr ? device.Allocate(bytes) : library->Allocate(device, bytes);
    if (!memory.ok()) return memory.status();
    buffer.library_ = library;
    buffer.device_ = &device;
    buffer.data_ = *memory;
    buffer.bytes_ = bytes;
    return buffer;
  }
  CollectiveBuffer(CollectiveBuffer&& other) noexcept { *this = std::move(other); }
  CollectiveBuffer& operator=(CollectiveBuffer&& other) noexcept {
    std::swap(library_, other.library_);
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~CollectiveBuffer() {
    if (data_ == nullptr) return;
    library_ == nullptr ? device_->Free(data_) : library_->Free(*device_, data_);
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  CollectiveLibrary* library_ = nullptr;
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace rempart::worker
