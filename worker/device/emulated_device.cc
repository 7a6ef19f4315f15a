// SPDX-License-Identifier: Apache-2.0
#include "worker/device/emulated_device.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/ops.h"

namespace rempart::worker {
namespace {

using Work = std::vector<std::function<void()>>;

// Of the thread: the graph that is recorded, and whose table of ops was asked for last.
thread_local Work* recording = nullptr;
thread_local const EmulatedDevice* asked = nullptr;

#define REMPART_QUEUE_OP(op, Args)                                                    \
  void Queue_##op(const kernels::Args& args, kernels::DeviceStream stream) {          \
    asked->QueueOp(#op, [args, stream] { kernels::cuda::Table().op(args, stream); }); \
  }
REMPART_DEVICE_OPS(REMPART_QUEUE_OP)
#undef REMPART_QUEUE_OP

class EmulatedGraph : public DeviceGraph {
 public:
  explicit EmulatedGraph(std::shared_ptr<int64_t> alive) : alive_(std::move(alive)) { ++*alive_; }
  ~EmulatedGraph() override { --*alive_; }

  Work work;

 private:
  const std::shared_ptr<int64_t> alive_;  // of its device, which may have gone
};

}  // namespace

EmulatedDevice::~EmulatedDevice() {
  for (const auto& [memory, bytes] : sizes_) std::free(memory);
  std::free(shared_);
}

std::string EmulatedDevice::Describe() const {
  return blas_ == nullptr ? "emulated GPU" : "emulated GPU, " + blas_->Describe();
}

void EmulatedDevice::Queue(std::function<void()> work) const {
  if (recording != nullptr) {
    recording->push_back(std::move(work));
  } else if (defers_) {
    pending_.push_back(std::move(work));
  } else {
    work();
  }
}

void EmulatedDevice::QueueOp(const char* op, std::function<void()> work) const {
  if (recording == nullptr) {
    loaded_.insert(op);
  } else if (loaded_.find(op) == loaded_.end()) {
    recorded_unloaded_.insert(op);
  }
  Queue(std::move(work));
}

void EmulatedDevice::RunTo(int64_t count) {
  for (; done_ < count; ++done_) {
    pending_.front()();
    pending_.pop_front();
  }
}

const kernels::DeviceOps& EmulatedDevice::ops() const {
  asked = this;
  static constexpr kernels::DeviceOps kOps = {.name = "cuda-emulated",
#define REMPART_FILL_OP(op, Args) .op = Queue_##op,
                                              REMPART_DEVICE_OPS(REMPART_FILL_OP)
#undef REMPART_FILL_OP
  };
  return kOps;
}

absl::StatusOr<DeviceMemory> EmulatedDevice::Memory() const {
  return DeviceMemory{total_, total_ - used_};
}

absl::StatusOr<void*> EmulatedDevice::Allocate(int64_t bytes) {
  if (bytes > total_ - used_) {
    return absl::ResourceExhaustedError(absl::StrCat("the device has no room for ", bytes,
                                                     " bytes: ", total_ - used_, " are free"));
  }
  // The exact size, so that the address sanitizer sees its end.
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, static_cast<size_t>(bytes > 0 ? bytes : 1)) != 0) {
    return absl::ResourceExhaustedError("out of memory");
  }
  std::memset(memory, 0, static_cast<size_t>(bytes));
  sizes_[memory] = bytes;
  used_ += bytes;
  ++allocations_;
  return memory;
}

void EmulatedDevice::Free(void* memory) {
  const auto found = sizes_.find(memory);
  used_ -= found->second;
  sizes_.erase(found);
  std::free(memory);
}

absl::StatusOr<void*> EmulatedDevice::AllocatePinned(int64_t bytes) {
  ++allocations_;
  return std::calloc(1, static_cast<size_t>(bytes > 0 ? bytes : 1));
}

void EmulatedDevice::FreePinned(void* memory) { std::free(memory); }

// One process, one memory: a share is an address.
absl::StatusOr<Device::Shared> EmulatedDevice::ShareMemory(int64_t bytes) {
  if (shared_ == nullptr) {
    if (posix_memalign(&shared_, 256, static_cast<size_t>(bytes)) != 0) {
      return absl::ResourceExhaustedError("out of memory");
    }
    std::memset(shared_, 0, static_cast<size_t>(bytes));
  }
  Shared shared;
  shared.memory = shared_;
  std::memcpy(shared.share.data(), &shared_, sizeof(shared_));
  return shared;
}

absl::StatusOr<void*> EmulatedDevice::OpenShared(const MemoryShare& share) {
  if (is_cut_off_) return absl::UnavailableError("the emulated GPU reaches no other");
  void* memory = nullptr;
  std::memcpy(&memory, share.data(), sizeof(memory));
  ++opened_;
  return memory;
}

void EmulatedDevice::CopyIn(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;  // as CUDA takes it, from nowhere
  Queue([=] { std::memcpy(device, host, static_cast<size_t>(bytes)); });
}

void EmulatedDevice::CopyOut(void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return;  // as CUDA takes it, from nowhere
  Queue([=] { std::memcpy(host, device, static_cast<size_t>(bytes)); });
}

absl::Status EmulatedDevice::Matmul(const kernels::DeviceMatmulArgs& args) {
  if (WayOf(args) == kernels::ProductWay::kMatvec) {
    ops().matvec(args, nullptr);
  } else if (blas_ == nullptr) {
    ops().matmul(args, nullptr);
  } else {
    Queue([this, args] {
      if (!blas_->Multiply(args, nullptr)) kernels::cuda::Table().matmul(args, nullptr);
    });
  }
  return absl::OkStatus();
}

void EmulatedDevice::Launch(std::function<void()> launch) { Queue(std::move(launch)); }

absl::Status EmulatedDevice::Try(absl::FunctionRef<void()> queue) {
  RETURN_IF_ERROR(Finish());
  const absl::Status failed = std::exchange(try_error_, absl::OkStatus());
  if (!failed.ok()) {
    if (try_breaks_) broken_ = failed;
    return failed;
  }
  queue();
  return Finish();
}

absl::StatusOr<std::unique_ptr<DeviceGraph>> EmulatedDevice::Record(
    absl::FunctionRef<absl::Status()> record) {
  auto graph = std::make_unique<EmulatedGraph>(graphs_alive_);
  recording = &graph->work;
  const absl::Status status = record();
  recording = nullptr;
  if (!status.ok()) return status;
  if (refused_graphs_ > 0) {
    --refused_graphs_;
    return NotRecorded("the emulated GPU has no room for a graph");
  }
  ++graphs_;
  return graph;
}

absl::Status EmulatedDevice::Start(DeviceGraph& graph) {
  for (const auto& work : static_cast<EmulatedGraph&>(graph).work) Queue(work);
  return absl::OkStatus();
}

absl::Status EmulatedDevice::Finish() {
  ++waits_;
  RunTo(done_ + static_cast<int64_t>(pending_.size()));
  return broken_;
}

absl::Status EmulatedDevice::Await(int place) {
  ++waits_;
  RunTo(marks_[place]);
  return broken_;
}

}  // namespace rempart::worker
