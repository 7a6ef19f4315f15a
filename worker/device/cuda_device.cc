// SPDX-License-Identifier: Apache-2.0
#include "worker/device/cuda_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/cuda/blas_products.h"
#include "kernels/cuda/ops.h"

namespace rempart::worker {
namespace {

// For the activations that FP8 and INT8 products quantise, and the sums of INT8.
constexpr int64_t kQuantizedBytes = int64_t{256} << 20;
// The library of the toolkit's major version, which is the runtime's.
const std::string& BlasLibrary() {
  static const auto* const name =
      new std::string(absl::StrCat("libcublasLt.so.", CUDART_VERSION / 1000));
  return *name;
}

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

// One that runs; a process that is forked or started anew is another one.
struct ProcessId {
  uint64_t machine = 0;
  uint64_t process = 0;
  bool operator==(const ProcessId&) const = default;
};
const ProcessId& ThisProcess() {
  static const ProcessId id = [] {
    // Made anew when the machine starts, the same in all its containers.
    std::string boot;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
    std::random_device random;
    return ProcessId{std::hash<std::string>()(boot), uint64_t{random()} << 32 | random()};
  }();
  return id;
}

// What a MemoryShare holds.
struct CudaShare {
  ProcessId process;
  int32_t ordinal = 0;
  bool has_handle = false;
  void* memory = nullptr;          // for this process
  cudaIpcMemHandle_t handle = {};  // for others
};
static_assert(sizeof(CudaShare) <= sizeof(MemoryShare));

class CudaGraph : public DeviceGraph {
 public:
  explicit CudaGraph(cudaGraphExec_t graph) : graph(graph) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph); }
  const cudaGraphExec_t graph;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(const CudaDeviceInfo& info) : info_(info) {}
  ~CudaDevice() override {
    Select();
    cudaStreamSynchronize(stream_);
    blas_.reset();
    cudaFree(blas_workspace_);
    cudaFree(quantized_);
    cudaFree(shared_);
    for (const cudaEvent_t mark : marks_) {
      if (mark != nullptr) cudaEventDestroy(mark);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Open(const CudaDeviceOptions& options) {
    RETURN_IF_ERROR(ToStatus(Select(), "cudaSetDevice"));
    RETURN_IF_ERROR(
        ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
    for (cudaEvent_t& mark : marks_) {
      RETURN_IF_ERROR(
          ToStatus(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming), "cudaEventCreate"));
    }
    // Machine code is loaded when a kernel is first launched; ask for one now.
    kernels::HashArgs probe;
    ASSIGN_OR_RETURN(void* word, Allocate(8));
    probe.out = static_cast<uint64_t*>(word);
    ops().hash(probe, stream_);
    const absl::Status launched = Finish();
    Free(word);
    if (!launched.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("this binary has no code for the ", info_.name, " (compute capability ",
                       info_.compute_major, ".", info_.compute_minor,
                       "): build with it among "
                       "REMPART_CUDA_ARCHITECTURES. ",
                       std::string(launched.message())));
    }
    ASSIGN_OR_RETURN(blas_workspace_, Allocate(options.blas_workspace_bytes));
    std::unique_ptr<kernels::cuda::CublasLt> library = kernels::cuda::CublasLt::Load(
        options.blas_library.empty() ? BlasLibrary() : options.blas_library, blas_workspace_,
        options.blas_workspace_bytes, &blas_absence_);
    if (library == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(quantized_, Allocate(kQuantizedBytes));
    blas_ = std::make_unique<kernels::cuda::BlasProducts>(
        std::move(library), kernels::cuda::Table(),
        kernels::cuda::BlasProducts::Options{
            info_.compute_major, info_.compute_minor, quantized_, kQuantizedBytes,
            [](const std::string& product) {
              LogInfo("worker", "cuBLASLt is not given a product: our own tiles compute it, slower",
                      {{"product", product}});
            }});
    return absl::OkStatus();
  }

  std::string Describe() const override {
    return absl::StrCat(
        info_.name, " (sm_", info_.compute_major, info_.compute_minor, ", ", info_.multiprocessors,
        " SMs), ", blas_ != nullptr ? blas_->Describe() : "without cuBLASLt: " + blas_absence_);
  }
  // Whoever asks for the table launches from it at once.
  const kernels::DeviceOps& ops() const override {
    Select();
    return kernels::cuda::Table();
  }
  kernels::DeviceStream stream() const override { return stream_; }

  absl::StatusOr<DeviceMemory> Memory() const override {
    Select();
    size_t free = 0, total = 0;
    RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
    return DeviceMemory{static_cast<int64_t>(total), static_cast<int64_t>(free)};
  }

  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    KeepEarlier();
    RETURN_IF_ERROR(ToStatus(error_, "GPU"));
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
    if (error != cudaSuccess) {
      const absl::Status status = Forget(error, "cudaMalloc");
      if (error != cudaErrorMemoryAllocation) return status;
      ASSIGN_OR_RETURN(const DeviceMemory left, Memory());
      return absl::ResourceExhaustedError(absl::StrCat("the GPU has no room for ", bytes >> 20,
                                                       " MiB: ", left.free_bytes >> 20,
                                                       " MiB are free"));
    }
    RETURN_IF_ERROR(
        ToStatus(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_), "cudaMemset"));
    RETURN_IF_ERROR(Finish());
    return memory;
  }
  void Free(void* memory) override {
    Select();
    cudaFree(memory);
  }

  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override {
    KeepEarlier();
    void* memory = nullptr;
    RETURN_IF_ERROR(
        Forget(cudaMallocHost(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))),
               "cudaMallocHost"));
    std::memset(memory, 0, static_cast<size_t>(bytes));
    return memory;
  }
  void FreePinned(void* memory) override {
    Select();
    cudaFreeHost(memory);
  }

  absl::StatusOr<Shared> ShareMemory(int64_t bytes) override {
    KeepEarlier();
    if (shared_ == nullptr) {
      ASSIGN_OR_RETURN(shared_, Allocate(bytes));
    }
    CudaShare share;
    share.process = ThisProcess();
    share.ordinal = info_.ordinal;
    share.memory = shared_;
    // Not every GPU can (MIG, virtual GPUs): then it is for this process alone.
    share.has_handle =
        Forget(cudaIpcGetMemHandle(&share.handle, shared_), "cudaIpcGetMemHandle").ok();
    Shared shared;
    shared.memory = shared_;
    std::memcpy(shared.share.data(), &share, sizeof(share));
    return shared;
  }

  absl::StatusOr<void*> OpenShared(const MemoryShare& given) override {
    KeepEarlier();
    CudaShare share;
    std::memcpy(&share, given.data(), sizeof(share));
    if (share.process == ThisProcess()) {
      RETURN_IF_ERROR(ReachGpu(share.ordinal));
      return share.memory;
    }
    if (share.process.machine != ThisProcess().machine) {
      return absl::UnavailableError("the GPUs are of several machines");
    }
    if (!share.has_handle) {
      return absl::UnavailableError("the GPU of another process does not let its memory be shared");
    }
    void* memory = nullptr;
    const cudaError_t error =
        cudaIpcOpenMemHandle(&memory, share.handle, cudaIpcMemLazyEnablePeerAccess);
    if (error == cudaSuccess) {
      opened_.push_back(memory);
      return memory;
    }
    Forget(error, "cudaIpcOpenMemHandle").IgnoreError();
    return absl::UnavailableError(absl::StrCat(
        "the memory of another process's GPU cannot be opened: ", cudaGetErrorString(error)));
  }

  void CloseShared(void* opened) override {
    const auto found = std::find(opened_.begin(), opened_.end(), opened);
    if (found == opened_.end()) return;  // of this process: there is nothing to close
    Select();
    cudaIpcCloseMemHandle(opened);
    opened_.erase(found);
  }

  void CopyIn(void* device, const void* host, int64_t bytes) override {
    Select();
    Keep(
        cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_));
  }
  void CopyOut(void* host, const void* device, int64_t bytes) override {
    Select();
    Keep(
        cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_));
  }

  absl::Status Matmul(const kernels::DeviceMatmulArgs& args) override {
    Select();
    if (WayOf(args) == kernels::ProductWay::kMatvec) {
      ops().matvec(args, stream_);
    } else if (blas_ == nullptr || !blas_->Multiply(args, stream_)) {
      ops().matmul(args, stream_);
    }
    return absl::OkStatus();
  }

  kernels::ProductWay WayOf(const kernels::DeviceMatmulArgs& args) override {
    return kernels::cuda::WayOf(args, blas_.get());
  }
  bool HasLibraryFor(kernels::DeviceFormat format) const override {
    return blas_ != nullptr && blas_->Has(format);
  }
  int64_t library_products() const override { return blas_ == nullptr ? 0 : blas_->products(); }

  void Launch(std::function<void()> launch) override {
    Select();
    launch();
  }

  absl::Status Try(absl::FunctionRef<void()> queue) override {
    RETURN_IF_ERROR(Finish());  // an error from before stays
    queue();
    const cudaError_t launched = cudaGetLastError();
    // What kernels do wrong breaks the device.
    Keep(cudaStreamSynchronize(stream_));
    RETURN_IF_ERROR(Check());
    return ToStatus(launched, "a launch");
  }

  absl::StatusOr<std::unique_ptr<DeviceGraph>> Record(
      absl::FunctionRef<absl::Status()> record) override {
    RETURN_IF_ERROR(Check());  // an error from before is none of the recording
    const cudaError_t begun = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
    if (begun != cudaSuccess) return NotRecordedFor(begun, "cudaStreamBeginCapture");
    is_recording_ = true;
    const absl::Status recorded = record();
    // A kernel that could not be queued would be missing from the graph.
    const cudaError_t queued = cudaPeekAtLastError();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    is_recording_ = false;
    cudaGraphExec_t ready = nullptr;
    cudaError_t made = cudaSuccess;
    const bool is_whole = recorded.ok() && queued == cudaSuccess && ended == cudaSuccess;
    if (is_whole) made = cudaGraphInstantiate(&ready, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (!recorded.ok()) {
      Forget(queued != cudaSuccess ? queued : ended, "").IgnoreError();
      return recorded;
    }
    if (queued != cudaSuccess) return NotRecordedFor(queued, "a launch into a graph");
    if (ended != cudaSuccess) return NotRecordedFor(ended, "cudaStreamEndCapture");
    if (made != cudaSuccess) return NotRecordedFor(made, "cudaGraphInstantiate");
    auto whole = std::make_unique<CudaGraph>(ready);
    // Takes the memory that its first start would, where that could only fail.
    const cudaError_t uploaded = cudaGraphUpload(ready, stream_);
    if (uploaded != cudaSuccess) return NotRecordedFor(uploaded, "cudaGraphUpload");
    return whole;
  }
  absl::Status Start(DeviceGraph& graph) override {
    Select();
    return ToStatus(cudaGraphLaunch(static_cast<CudaGraph&>(graph).graph, stream_),
                    "cudaGraphLaunch");
  }

  absl::Status Check() override {
    Select();
    Keep(cudaPeekAtLastError());
    return ToStatus(error_, "GPU");
  }
  absl::Status Finish() override {
    Select();
    Keep(cudaStreamSynchronize(stream_));
    return Check();
  }

  void Mark(int place) override {
    Select();
    Keep(cudaEventRecord(marks_[place], stream_));
  }
  absl::Status Await(int place) override {
    Select();
    Keep(cudaEventSynchronize(marks_[place]));
    return Check();
  }

 private:
  // CUDA keeps one current GPU for each thread, and several ranks may share a process: so every
  // call names its own. Naming the one that is current already costs no more than a look.
  cudaError_t Select() const { return cudaSetDevice(info_.ordinal); }

  // The first error stays.
  void Keep(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }

  // Before a call whose error Forget takes: one from before is none of its own, and stays. What
  // goes wrong in a recording is the recording's.
  void KeepEarlier() {
    Select();
    if (!is_recording_) Keep(cudaPeekAtLastError());
  }

  // Of a call that may fail on a device that works: its error, which Check does not find then. A
  // broken device fails every call, and stays broken.
  absl::Status Forget(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return absl::OkStatus();
    // Of a stream that records nobody may ask.
    const cudaError_t runs = is_recording_ ? cudaSuccess : cudaStreamQuery(stream_);
    if (runs != cudaSuccess && runs != cudaErrorNotReady) Keep(runs);
    // Only now: that the stream still runs is left as an error, too.
    cudaGetLastError();
    return ToStatus(error, what);
  }
  absl::Status NotRecordedFor(cudaError_t error, const char* what) {
    const absl::Status status = Forget(error, what);
    return error_ == cudaSuccess ? NotRecorded(status.message()) : status;
  }

  // Peer access from this GPU to another one of this process.
  absl::Status ReachGpu(int ordinal) {
    if (ordinal == info_.ordinal) return absl::OkStatus();
    int reaches = 0;
    RETURN_IF_ERROR(Forget(cudaDeviceCanAccessPeer(&reaches, info_.ordinal, ordinal),
                           "cudaDeviceCanAccessPeer"));
    if (reaches == 0) {
      return absl::UnavailableError(
          absl::StrCat("GPU ", info_.ordinal, " does not reach GPU ", ordinal));
    }
    const cudaError_t enabled = cudaDeviceEnablePeerAccess(ordinal, 0);
    if (enabled == cudaSuccess) return absl::OkStatus();
    Forget(enabled, "cudaDeviceEnablePeerAccess").IgnoreError();
    if (enabled == cudaErrorPeerAccessAlreadyEnabled) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("GPU ", info_.ordinal, " does not reach GPU ",
                                               ordinal, ": ", cudaGetErrorString(enabled)));
  }

  const CudaDeviceInfo info_;
  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, kMarks> marks_ = {};
  cudaError_t error_ = cudaSuccess;
  bool is_recording_ = false;
  std::unique_ptr<kernels::cuda::BlasProducts> blas_;
  std::string blas_absence_;
  void* blas_workspace_ = nullptr;
  void* quantized_ = nullptr;
  void* shared_ = nullptr;
  std::vector<void*> opened_;  // of other processes
};

}  // namespace

absl::StatusOr<std::vector<CudaDeviceInfo>> FindCudaDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    return absl::NotFoundError("no NVIDIA driver, or one too old for this binary's CUDA runtime");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return absl::NotFoundError("no NVIDIA GPU");
  }
  RETURN_IF_ERROR(ToStatus(error, "cudaGetDeviceCount"));
  std::vector<CudaDeviceInfo> found;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties"));
    CudaDeviceInfo info;
    info.ordinal = i;
    info.name = properties.name;
    char address[32] = {};
    RETURN_IF_ERROR(
        ToStatus(cudaDeviceGetPCIBusId(address, sizeof(address), i), "cudaDeviceGetPCIBusId"));
    info.pci_bus_id = address;
    info.compute_major = properties.major;
    info.compute_minor = properties.minor;
    info.multiprocessors = properties.multiProcessorCount;
    info.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    int khz = 0;
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, i) == cudaSuccess) {
      // Two transfers a clock.
      info.memory_bytes_per_second = int64_t{2} * khz * 1000 * (properties.memoryBusWidth / 8);
    }
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, i) == cudaSuccess) {
      info.clock_hz = int64_t{1000} * khz;
    }
    for (int other = 0; other < count; ++other) {
      int reaches = 0;
      if (other == i || cudaDeviceCanAccessPeer(&reaches, i, other) != cudaSuccess) continue;
      if (reaches != 0) info.reaches.push_back(other);
    }
    cudaGetLastError();  // what a GPU does not tell of itself is none of its errors
    found.push_back(info);
  }
  return found;
}

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(const CudaDeviceOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<CudaDeviceInfo> found, FindCudaDevices());
  if (options.ordinal < 0 || options.ordinal >= static_cast<int>(found.size())) {
    return absl::NotFoundError(
        absl::StrCat("no GPU ", options.ordinal, ": there are ", found.size()));
  }
  auto device = std::make_unique<CudaDevice>(found[options.ordinal]);
  RETURN_IF_ERROR(device->Open(options));
  return device;
}

}  // namespace rempart::worker
