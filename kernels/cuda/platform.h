// SPDX-License-Identifier: Apache-2.0
// The few words that kernel sources are written in. nvcc gives them their usual meaning; any other
// compiler gets those of kernels/cuda/emulator.h, which runs the same source on the CPU, thread by
// thread: that is how kernels are tested where there is no GPU.
//
// What a kernel may use: threadIdx, blockIdx, blockDim, gridDim (x, y, z), __syncthreads, the warp
// and memory primitives of kernels/cuda/primitives.h, and DynamicShared. Shared memory is always
// dynamic, so that the emulator can fill it with NaN before each block. Host code starts a kernel
// with Launch and never with <<<>>>.
//
// A kernel names the most threads that a block of it is started with: REMPART_KERNEL(kThreads). The
// compiler then gives each thread no more registers than so many threads find in a multiprocessor
// (64 Ki); without it a large kernel compiles, and its launch fails. tests/cuda/launchable.py looks
// at what was compiled.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/host_device.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define REMPART_DEVICE __device__ __forceinline__
#define REMPART_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define REMPART_UNROLL _Pragma("unroll")
// Before a kernel's argument, const: what is indexed in it stays where it is, and is not copied to
// the thread's local memory first.
#define REMPART_IN_PLACE __grid_constant__
#else
#include "kernels/cuda/emulator.h"

#define REMPART_DEVICE inline
#define REMPART_KERNEL(threads) static void
#define REMPART_UNROLL
#define REMPART_IN_PLACE
#endif

namespace rempart::kernels::cuda {

// cudaStream_t; the emulator runs everything at once and ignores it.
using Stream = void*;

struct Grid {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
};

inline constexpr int kWarp = 32;

// What is read or written at once has to lie at a multiple of its size: a GPU ends a kernel for an
// address that does not, and the emulator the test. No other cast brings memory to another type
// (tests/tidy).
template <class T>
REMPART_HD const T* Wide(const void* at) {
#if !defined(__CUDACC__)
  emulator::CheckAligned(at, sizeof(T), "an access");
#endif
  return static_cast<const T*>(at);
}
template <class T>
REMPART_HD T* Wide(void* at) {
  return const_cast<T*>(Wide<T>(static_cast<const void*>(at)));
}

#if defined(__CUDACC__)

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* DynamicShared() {
  extern __shared__ uint4 rempart_dynamic_shared[];
  return Wide<T>(rempart_dynamic_shared);
}

// Programmatic dependent launch exists from compute capability 9.0 on; all GPUs of a process are
// taken to be alike.
inline bool LaunchesEarly() {
  static const bool early = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
  }();
  return early;
}

// Starts `kernel` on `stream`. The first error of a launch stays in cudaPeekAtLastError, which
// whoever owns the stream asks once per step. With programmatic dependent launch the kernel may
// begin before its predecessor ends; it must call WaitForPrevious before it touches memory.
template <class... Parameters, class... Arguments>
void Launch(void (*kernel)(Parameters...), Grid grid, uint32_t threads, size_t shared_bytes,
            Stream stream, Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = LaunchesEarly() ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

#else

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

template <class T>
T* DynamicShared() {
  return static_cast<T*>(emulator::DynamicShared());
}

template <class... Parameters, class... Arguments>
void Launch(void (*kernel)(Parameters...), Grid grid, uint32_t threads, size_t shared_bytes, Stream,
            Arguments... arguments) {
  emulator::Run({grid.x, grid.y, grid.z}, threads, shared_bytes,
                [&] { kernel(static_cast<Parameters>(arguments)...); });
}

#endif

}  // namespace rempart::kernels::cuda
