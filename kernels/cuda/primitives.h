// SPDX-License-Identifier: Apache-2.0
// What kernels use of the hardware beyond plain C++: shuffles, tensor cores, asynchronous copies,
// atomics, programmatic dependent launch. Each has a twin for the emulator, written from the PTX
// manual's definition of the instruction (sections named below), not from what the kernels expect.
//
// All 32 lanes of a warp call a warp primitive together.
#pragma once

#include "kernels/cuda/numbers.h"
#include "kernels/cuda/platform.h"

#if !defined(__CUDACC__)
#include <atomic>
#include <chrono>
#include <thread>
#endif

namespace rempart::kernels::cuda {

REMPART_DEVICE int Lane() { return static_cast<int>(threadIdx.x & 31); }
REMPART_DEVICE int WarpIndex() { return static_cast<int>(threadIdx.x >> 5); }

#if defined(__CUDACC__)

__device__ __forceinline__ void WarpBarrier() { __syncwarp(); }
__device__ __forceinline__ float ShuffleXor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ uint32_t ShuffleXor(uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ int ShuffleXor(int value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ float Shuffle(float value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
__device__ __forceinline__ uint32_t Shuffle(uint32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// PTX 9.7.14.5.8, mma.m16n8k16 on BF16: d += a b, a [16, 16], b [16, 8], d [16, 8] F32.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// PTX 9.7.14.5.15, ldmatrix: four 8x8 matrices of 16-bit elements from shared memory; lane i gives
// the address of row i % 8 of matrix i / 8 (16 bytes, aligned). Transposed for LoadMatrixT.
__device__ __forceinline__ void LoadMatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void LoadMatrixT(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// PTX 9.7.9.25.3, cp.async of 16 bytes from global to shared memory, both aligned; writes zeros
// where `valid` is false, and does not read then.
__device__ __forceinline__ void CopyAsync16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroupsLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Programmatic dependent launch (PTX griddepcontrol): waits for the kernels before this one, and
// lets the next one start its prologue.
__device__ __forceinline__ void WaitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float FastExp(float x) { return __expf(x); }
__device__ __forceinline__ float InverseRoot(float x) { return rsqrtf(x); }
__device__ __forceinline__ uint32_t AtomicAdd(uint32_t* at, uint32_t value) {
  return atomicAdd(at, value);
}
__device__ __forceinline__ void AtomicAdd(uint64_t* at, uint64_t value) {
  atomicAdd(Wide<unsigned long long>(at), static_cast<unsigned long long>(value));
}
__device__ __forceinline__ uint32_t AtomicMin(uint32_t* at, uint32_t value) {
  return atomicMin(at, value);
}
// A hint to bring the line into L2: weights do not depend on the kernel before.
__device__ __forceinline__ void PrefetchL2(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}
// Words that other devices write and read.
__device__ __forceinline__ void StoreRelease(uint32_t* at, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t LoadAcquire(const uint32_t* at) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ __forceinline__ void StoreRelease(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
__device__ __forceinline__ uint64_t LoadAcquire(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
// 16 bytes, aligned, that another device has written before a flag which this block has seen: from
// where they are, not from a cache of this multiprocessor.
__device__ __forceinline__ uint4 LoadPeer(const void* at) {
  uint4 value;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(at)
               : "memory");
  return value;
}
// In a loop that waits for another device.
__device__ __forceinline__ void SpinPause() {}
__device__ __forceinline__ uint64_t NowNs() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

#else

inline void WarpBarrier() { emulator::WarpBarrier(); }

template <class T>
T Shuffle(T value, int lane) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const uint32_t* all = emulator::WarpExchange(&word, 1);
  std::memcpy(&value, all + (lane & 31) * emulator::kExchangeWords, 4);
  return value;
}
template <class T>
T ShuffleXor(T value, int mask) {
  return Shuffle(value, Lane() ^ mask);
}

// Which element of the fragments each lane holds: row, column of a[i]'s low half, and so on.
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const uint32_t* all = emulator::WarpExchange(words, 6);
  const auto half = [](uint32_t pair, int i) { return i & 1 ? HighFloat(pair) : LowFloat(pair); };
  // The lane of a 16x16 operand's element (row, k): 4 * (row % 8) + (k % 8) / 2; its register:
  // (row / 8) + 2 * (k / 8).
  const auto a_at = [&](int row, int k) {
    const uint32_t* lane = all + (4 * (row % 8) + (k % 8) / 2) * emulator::kExchangeWords;
    return half(lane[row / 8 + 2 * (k / 8)], k);
  };
  const auto b_at = [&](int k, int col) {
    const uint32_t* lane = all + (4 * col + (k % 8) / 2) * emulator::kExchangeWords;
    return half(lane[4 + k / 8], k);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = Lane() / 4 + 8 * (i / 2);
    const int col = 2 * (Lane() % 4) + i % 2;
    float sum = d[i];
    for (int k = 0; k < 16; ++k) sum += a_at(row, k) * b_at(k, col);
    d[i] = sum;
  }
}

template <bool kTranspose>
void LoadMatrices(uint32_t (&r)[4], const void* row) {
  emulator::CheckAligned(row, 16, "ldmatrix");
  uint32_t words[2];
  std::memcpy(words, &row, 8);
  const uint32_t* all = emulator::WarpExchange(words, 2);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int i, int j) {
      const uint16_t* data;
      std::memcpy(&data, all + (8 * matrix + i) * emulator::kExchangeWords, 8);
      return static_cast<uint32_t>(data[j]);
    };
    const int i = Lane() / 4;
    const int j = 2 * (Lane() % 4);
    r[matrix] = kTranspose ? element(j, i) | element(j + 1, i) << 16
                           : element(i, j) | element(i, j + 1) << 16;
  }
  // The addresses were read through; shared memory must not change before all have done so.
  emulator::WarpBarrier();
}
inline void LoadMatrix(uint32_t (&r)[4], const void* row) { LoadMatrices<false>(r, row); }
inline void LoadMatrixT(uint32_t (&r)[4], const void* row) { LoadMatrices<true>(r, row); }

inline void CopyAsync16(void* to, const void* from, bool valid) {
  emulator::CopyLater(to, from, valid ? 16 : 0, valid ? 0 : 16);
}
inline void CommitCopies() { emulator::CommitCopies(); }
template <int kGroupsLeft>
void WaitForCopies() {
  emulator::WaitForCopies(kGroupsLeft);
}

inline void WaitForPrevious() {}
inline void LetNextStart() {}
inline float FastExp(float x) { return std::exp(x); }
inline float InverseRoot(float x) { return 1.0f / std::sqrt(x); }
inline uint32_t AtomicAdd(uint32_t* at, uint32_t value) {
  return std::atomic_ref<uint32_t>(*at).fetch_add(value, std::memory_order_relaxed);
}
inline void AtomicAdd(uint64_t* at, uint64_t value) {
  std::atomic_ref<uint64_t>(*at).fetch_add(value, std::memory_order_relaxed);
}
inline uint32_t AtomicMin(uint32_t* at, uint32_t value) {
  std::atomic_ref<uint32_t> shared(*at);
  uint32_t old = shared.load(std::memory_order_relaxed);
  while (value < old && !shared.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}
inline void PrefetchL2(const void*) {}
inline void StoreRelease(uint32_t* at, uint32_t value) {
  std::atomic_ref<uint32_t>(*at).store(value, std::memory_order_release);
}
inline uint32_t LoadAcquire(const uint32_t* at) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(at)).load(std::memory_order_acquire);
}
inline void StoreRelease(uint64_t* at, uint64_t value) {
  std::atomic_ref<uint64_t>(*at).store(value, std::memory_order_release);
}
inline uint64_t LoadAcquire(const uint64_t* at) {
  return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(at)).load(std::memory_order_acquire);
}
inline uint4 LoadPeer(const void* at) { return *Wide<uint4>(at); }
inline void SpinPause() { std::this_thread::yield(); }
inline uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

#endif

REMPART_DEVICE float WarpSum(float value) {
  for (int mask = 16; mask > 0; mask >>= 1) value += ShuffleXor(value, mask);
  return value;
}
REMPART_DEVICE float WarpMax(float value) {
  for (int mask = 16; mask > 0; mask >>= 1) value = fmaxf(value, ShuffleXor(value, mask));
  return value;
}

// Sum and maximum over the block, the same bits for every thread; scratch [32] in shared memory.
// Whole warps only.
REMPART_DEVICE float BlockSum(float value, float* scratch) {
  const int warps = static_cast<int>(blockDim.x >> 5);
  value = WarpSum(value);
  __syncthreads();
  if (Lane() == 0) scratch[WarpIndex()] = value;
  __syncthreads();
  return WarpSum(Lane() < warps ? scratch[Lane()] : 0.0f);
}
REMPART_DEVICE float BlockMax(float value, float* scratch) {
  const int warps = static_cast<int>(blockDim.x >> 5);
  value = WarpMax(value);
  __syncthreads();
  if (Lane() == 0) scratch[WarpIndex()] = value;
  __syncthreads();
  return WarpMax(Lane() < warps ? scratch[Lane()] : scratch[0]);
}

}  // namespace rempart::kernels::cuda
