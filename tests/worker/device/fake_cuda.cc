// SPDX-License-Identifier: Apache-2.0
// A CUDA runtime whose GPUs have the host's memory, and which holds callers to what the runtime's
// documentation says: whose call belongs to which GPU, which calls a recording allows, and that the
// last error of a thread stays until somebody takes it. Copies are done at once, or when a graph is
// started; kernels, which tests run over the emulator, at once.
#include "tests/worker/device/fake_cuda.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <utility>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct FakeCudaStream {
  int device;
  bool is_capturing = false;
  bool is_invalid = false;  // what it records
  Work recorded;
};
struct FakeCudaEvent {
  int device;
};
struct FakeCudaGraph {
  Work work;
};
struct FakeCudaGraphExec {
  Work work;
};

namespace {

constexpr int kClockKhz = 1'500'000;

thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local FakeCudaStream* capturing = nullptr;
std::set<std::pair<int, int>> peers;

// NVIDIA's own libraries clear cudaErrorNotReady as any other error.
cudaError_t Return(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Forbidden(const std::string& call, const char* why) {
  if (FakeCuda().complaint.empty()) FakeCuda().complaint = call + ": " + why;
  return Return(cudaErrorInvalidResourceHandle);
}

// What every call comes to before it does anything.
cudaError_t Begin(const char* call) {
  if (FakeCuda().broken != cudaSuccess) return Return(FakeCuda().broken);
  const auto found = FakeCuda().results.find(call);
  return found == FakeCuda().results.end() ? cudaSuccess : Return(found->second);
}
// Of a call that no recording of this thread allows: it ends the one there is.
cudaError_t BeginUnrecorded(const char* call) {
  const cudaError_t begun = Begin(call);
  if (begun != cudaSuccess || capturing == nullptr) return begun;
  capturing->is_invalid = true;
  return Return(cudaErrorStreamCaptureUnsupported);
}
// Of a call for a stream or an event.
template <class Handle>
cudaError_t OnItsGpu(const char* call, const Handle* handle, cudaError_t begun) {
  if (begun != cudaSuccess || handle->device == current) return begun;
  return Forbidden(call, "of another GPU than the current one");
}
template <class Handle>
cudaError_t BeginOn(const char* call, const Handle* handle) {
  return OnItsGpu(call, handle, Begin(call));
}
template <class Handle>
cudaError_t BeginUnrecordedOn(const char* call, const Handle* handle) {
  return OnItsGpu(call, handle, BeginUnrecorded(call));
}

template <class T>
cudaError_t Make(T** made, T value) {
  ++FakeCuda().alive;
  *made = new T(std::move(value));
  return cudaSuccess;
}
template <class T>
cudaError_t Give(T* made) {
  --FakeCuda().alive;
  delete made;
  return cudaSuccess;
}

void Queue(cudaStream_t stream, std::function<void()> work) {
  if (stream->is_capturing) {
    stream->recorded.push_back(std::move(work));
  } else {
    work();
  }
}

cudaError_t Allocate(void** memory, size_t bytes) {
  ++FakeCuda().alive;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
cudaError_t Release(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  --FakeCuda().alive;
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

FakeCudaControls& FakeCuda() {
  static FakeCudaControls controls;
  return controls;
}
void FailFakeLaunch(cudaError_t error) { Return(error); }
int FakeCurrentGpu() { return current; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t) { return "as a test wants it"; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, FakeCuda().broken); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  *count = FakeCuda().gpus;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  *properties = {"Fake GPU", size_t{2} << 30, 9, 0, 132, 6144};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* address, int bytes, int device) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  std::strncpy(address, device == 0 ? "0000:1b:00.0" : "0000:1c:00.0", static_cast<size_t>(bytes));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  *value = kClockKhz;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  *can = FakeCuda().gpus_reach_each_other ? 1 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  return peers.emplace(current, peer).second ? cudaSuccess
                                             : Return(cudaErrorPeerAccessAlreadyEnabled);
}
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  if (device < 0 || device >= FakeCuda().gpus) return Return(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  *free = FakeCuda().free_bytes;
  *total = size_t{2} << 30;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (const cudaError_t no = BeginUnrecorded(__func__); no != cudaSuccess) return no;
  if (bytes > FakeCuda().free_bytes) return Return(cudaErrorMemoryAllocation);
  return Allocate(memory, bytes);
}
cudaError_t cudaFree(void* memory) {
  if (const cudaError_t no = BeginUnrecorded(__func__); no != cudaSuccess) return no;
  return Release(memory);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  if (const cudaError_t no = BeginUnrecorded(__func__); no != cudaSuccess) return no;
  return Allocate(memory, bytes);
}
cudaError_t cudaFreeHost(void* memory) {
  if (const cudaError_t no = BeginUnrecorded(__func__); no != cudaSuccess) return no;
  return Release(memory);
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t no = BeginOn(__func__, stream); no != cudaSuccess) return no;
  Queue(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (const cudaError_t no = BeginOn(__func__, stream); no != cudaSuccess) return no;
  Queue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
// A handle knows its memory, and the GPU that was current when it was made.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  std::memcpy(handle->reserved, &memory, sizeof(memory));
  std::memcpy(handle->reserved + sizeof(memory), &current, sizeof(current));
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  ++FakeCuda().alive;
  std::memcpy(memory, handle.reserved, sizeof(*memory));
  return cudaSuccess;
}
cudaError_t cudaIpcCloseMemHandle(void*) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  --FakeCuda().alive;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  return Make(stream, FakeCudaStream{current, false, false, {}});
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  return Give(stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream == nullptr) return Begin(__func__);  // the default one
  if (const cudaError_t no = BeginUnrecordedOn(__func__, stream); no != cudaSuccess) return no;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (const cudaError_t no = BeginUnrecordedOn(__func__, stream); no != cudaSuccess) return no;
  return FakeCuda().is_busy ? Return(cudaErrorNotReady) : cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  return Make(event, FakeCudaEvent{current});
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  return Give(event);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t no = BeginOn(__func__, event); no != cudaSuccess) return no;
  if (const cudaError_t no = BeginOn(__func__, stream); no != cudaSuccess) return no;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t no = BeginUnrecordedOn(__func__, event); no != cudaSuccess) return no;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (const cudaError_t no = BeginOn(__func__, stream); no != cudaSuccess) return no;
  if (mode != cudaStreamCaptureModeThreadLocal) {
    return Forbidden(__func__, "would forbid calls of other ranks' threads");
  }
  stream->is_capturing = true;
  stream->is_invalid = false;
  capturing = stream;
  return cudaSuccess;
}
// Ends the recording whatever comes of it.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (capturing != stream) return Forbidden(__func__, "of another thread than began it");
  capturing = nullptr;
  stream->is_capturing = false;
  Work recorded = std::exchange(stream->recorded, {});
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  if (stream->is_invalid) return Return(cudaErrorStreamCaptureInvalidated);
  return Make(graph, FakeCudaGraph{std::move(recorded)});
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  if (const cudaError_t no = Begin(__func__); no != cudaSuccess) return no;
  return Make(ready, FakeCudaGraphExec{graph->work});
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream) {
  if (const cudaError_t no = BeginOn(__func__, stream); no != cudaSuccess) return no;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  if (const cudaError_t no = BeginOn(__func__, stream); no != cudaSuccess) return no;
  for (const auto& work : ready->work) Queue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return Give(graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) { return Give(ready); }
