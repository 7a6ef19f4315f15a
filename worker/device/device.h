// SPDX-License-Identifier: Apache-2.0
// A device with memory and kernels of its own: a GPU (cuda_device.h), or its stand-in that runs the
// same kernels on the CPU (emulated_device.h). All that a model sees of it.
//
// One thread at a time uses a device; a process may have several. Everything is queued on one
// stream, in order; only Finish, Await, Allocate and Free wait. An error of the device is sticky:
// every later Finish or Check reports it, and the process should log it and end.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/device_ops.h"

namespace rempart::worker {

// How another rank's device reaches memory of ShareMemory: for OpenShared alone, in this process or
// in another one.
inline constexpr int64_t kShareBytes = 128;
using MemoryShare = std::array<uint8_t, kShareBytes>;

struct DeviceMemory {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

// Work that was recorded once and is started as a whole. Ends with its device.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
};

class Device {
 public:
  virtual ~Device() = default;

  // "NVIDIA H200 (sm_90, 132 SMs)".
  virtual std::string Describe() const = 0;
  virtual const kernels::DeviceOps& ops() const = 0;
  virtual kernels::DeviceStream stream() const = 0;
  virtual absl::StatusOr<DeviceMemory> Memory() const = 0;

  // Aligned to 256 bytes, zeroed. ResourceExhausted says how much was wanted and how much is free.
  virtual absl::StatusOr<void*> Allocate(int64_t bytes) = 0;
  virtual void Free(void* memory) = 0;
  // Host memory that copies read and write without a staging copy, zeroed.
  virtual absl::StatusOr<void*> AllocatePinned(int64_t bytes) = 0;
  virtual void FreePinned(void* memory) = 0;

  // Memory that the kernels of other devices may read and write, aligned to 256 bytes, zeroed when
  // it is first asked for. The same each time, of the size that was asked for first, and there
  // until the device goes: whoever has opened it may use it for so long.
  struct Shared {
    void* memory = nullptr;
    MemoryShare share = {};
  };
  virtual absl::StatusOr<Shared> ShareMemory(int64_t bytes) = 0;
  // What another device has shared, as this one's kernels reach it. Unavailable says why they
  // cannot.
  virtual absl::StatusOr<void*> OpenShared(const MemoryShare& share) = 0;
  // What OpenShared gave. The device must have finished with it.
  virtual void CloseShared(void* opened) = 0;

  // The host side must stay as it is until the copy has run; copies from memory that is not pinned
  // may wait for it.
  virtual void CopyIn(void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyOut(void* host, const void* device, int64_t bytes) = 0;

  // The fastest of the device's ways to multiply, and which of them that is.
  virtual absl::Status Matmul(const kernels::DeviceMatmulArgs& args) = 0;
  virtual kernels::ProductWay WayOf(const kernels::DeviceMatmulArgs& args) = 0;
  // Whether a library is there that multiplies many tokens by this format, as it is documented for
  // this device, where alignments and strides suit it; and how many of its products Matmul has
  // queued.
  virtual bool HasLibraryFor(kernels::DeviceFormat) const { return false; }
  virtual int64_t library_products() const { return 0; }

  // Calls `launch`, which queues work of a library on stream(), with this device as the calling
  // thread's current one. While a graph is recorded that work becomes a part of it: a device
  // without streams keeps `launch` and calls it each time the graph is started.
  virtual void Launch(std::function<void()> launch) = 0;

  // Calls `queue`, which queues ops that this device may not be able to start, and waits for them.
  // An error that leaves the device as it was is returned, and forgotten; one that breaks it stays.
  virtual absl::Status Try(absl::FunctionRef<void()> queue) = 0;

  // Runs `record`, which queues ops and copies, without executing them. Only what `record` queues
  // on this device is part of the graph; pointers are fixed, contents are not. A device that works
  // and yet cannot record it, for want of memory above all, says so by IsNotRecorded: then nothing
  // was queued, and the same work can be queued as it is.
  virtual absl::StatusOr<std::unique_ptr<DeviceGraph>> Record(
      absl::FunctionRef<absl::Status()> record) = 0;
  virtual absl::Status Start(DeviceGraph& graph) = 0;

  // The first error so far, without waiting; and after waiting for all that is queued.
  virtual absl::Status Check() = 0;
  virtual absl::Status Finish() = 0;

  // Puts a mark behind what is queued now; of each place the last one counts.
  static constexpr int kMarks = 2;
  virtual void Mark(int place) = 0;
  // As Finish, but waits for what is before the mark alone.
  virtual absl::Status Await(int place) = 0;
};

// The error of a device that a process was asked to compute on and that cannot be had: Unavailable,
// with a mark that tells it from other things that are. The message says what to do.
absl::Status DeviceUnavailable(absl::string_view message);
bool IsDeviceUnavailable(const absl::Status& status);

// The error of a device that has not recorded a graph, and can do its work nonetheless.
absl::Status NotRecorded(absl::string_view message);
bool IsNotRecorded(const absl::Status& status);

// Gives a device that was just opened some bytes, has it add up their checksum, and takes them
// back. One that computes or copies wrong, as broken memory or a broken link make it, is
// DeviceUnavailable: better no model than one of other weights.
absl::Status CheckDevice(Device& device);

// Memory of a device, freed with its owner. The device outlives it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static absl::StatusOr<DeviceBuffer> Make(Device& device, int64_t bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// The same for pinned host memory.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Make(Device& device, int64_t bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace rempart::worker
