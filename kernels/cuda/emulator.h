// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU, for tests: each thread of a block is a fiber with a stack of its
// own, and the calling thread runs the blocks of a grid one after the other. Correct, not fast.
//
// What it finds that a plain compile cannot: wrong indices (above all under the address sanitizer),
// barriers that not all threads reach, shuffles with lanes missing, shared memory read before it is
// written (it is filled with NaN), asynchronous copies read before they are waited for, grids,
// blocks and addresses that a GPU refuses, and, by
// running the threads in both orders (SetThreadOrder), most missing barriers.
// Under the thread sanitizer, after ShowThreads, every missing barrier and most races of blocks.
// What it cannot find: weak memory order, bank conflicts, speed.
//
// All state is thread-local: several threads may each run a grid, as ranks do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct RempartDim3 {
  unsigned x = 0, y = 0, z = 0;
};
extern thread_local RempartDim3 threadIdx, blockIdx, blockDim, gridDim;

namespace rempart::kernels::cuda::emulator {

// In which order the threads of a block are resumed, between the points where they meet.
enum class ThreadOrder { kForward, kReverse };
void SetThreadOrder(ThreadOrder order);

// From now on the thread sanitizer sees the threads of blocks; before, it sees a grid as the work
// of the thread that runs it, which is many times faster. Before any grid, in a build with it.
void ShowThreads();

// Of every GPU that there is code for (CUDA C++ Programming Guide, technical specifications).
inline constexpr unsigned kMaxThreads = 1024;         // of a block
inline constexpr unsigned kMaxGridX = 0x7fffffff;     // blocks
inline constexpr unsigned kMaxGridYZ = 65535;         // blocks
inline constexpr size_t kMaxSharedBytes = 99 * 1024;  // of a block: 8.6, 8.9 and 12.0 have least

// Runs body once for every thread of every block. Aborts with a message where a GPU would not start
// the grid, and when the threads of a block cannot all go on.
void Run(RempartDim3 grid, unsigned threads, size_t shared_bytes,
         const std::function<void()>& body);

// Of the running block.
void* DynamicShared();
void BlockBarrier();

// Waits for all 32 lanes of the warp.
void WarpBarrier();
// Every lane gives at most kExchangeWords words; returns those of all lanes, [32, kExchangeWords],
// which are void at the next exchange.
const uint32_t* WarpExchange(const uint32_t* words, int count);
inline constexpr int kExchangeWords = 16;

// Aborts where `at` is no multiple of `bytes`, as an instruction demands that reads or writes so
// many at once.
[[noreturn]] void DieUnaligned(const void* at, size_t bytes, const char* instruction);
inline void CheckAligned(const void* at, size_t bytes, const char* instruction) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) DieUnaligned(at, bytes, instruction);
}

// Copies that take place at the matching wait, as late as the hardware may run them.
void CopyLater(void* to, const void* from, int bytes, int zeros);
void CommitCopies();
void WaitForCopies(int groups_left);

}  // namespace rempart::kernels::cuda::emulator

inline void __syncthreads() { rempart::kernels::cuda::emulator::BlockBarrier(); }
