// SPDX-License-Identifier: Apache-2.0
// The threads that compute kernels. Owned by the worker; ParallelFor is called by one thread at a
// time (the engine thread), which works along with the pool.
//
// Invariants:
//  1. Work is cut into chunks. Each thread begins with its own run of neighbouring ones, so that it
//     reads memory in one stream, and then takes the last chunks of the others. A thread that the
//     kernel has descheduled holds up at most the chunk it is in; nobody waits for it to show up.
//  2. A thread without work spins for a few microseconds, then parks on a futex: an idle pool uses
//     no CPU, and back-to-back loops cost no system call.
// Which thread runs a chunk is not deterministic; what a chunk computes must not depend on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace rempart::worker {

struct ThreadPoolOptions {
  int threads = 0;                 // with the caller; 0: UsableCpuCount()
  std::vector<int32_t> cpus = {};  // that pool threads are bound to; empty: those of their maker
  int spin_us = 60;                // before a thread parks; 0 parks at once
};

class ThreadPool {
 public:
  explicit ThreadPool(const ThreadPoolOptions& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(begin, end) for consecutive ranges of `chunk` items (the last may be shorter) that
  // cover [0, n), on any of the threads, and returns when all have returned. chunk > 0, and
  // n / chunk < 2^32. Must not be called from a body.
  void ParallelFor(int64_t n, int64_t chunk, absl::FunctionRef<void(int64_t, int64_t)> body);

 private:
  struct Job {
    int64_t n;
    int64_t chunk;
    const absl::FunctionRef<void(int64_t, int64_t)>* body;
  };

  // The chunks of one thread that nobody has taken yet: the first in the high half, the end in the
  // low. One word, so that whoever takes one takes it from what the word says now; which job that
  // belongs to is looked up afterwards.
  struct alignas(64) Run {
    std::atomic<uint64_t> left = 0;
  };

  void RunThread(size_t self);
  // Runs chunks of the current job until none is left, those of thread `self` first. True when it
  // ran one.
  bool RunChunks(size_t self);
  // As long as `thread` has chunks left, takes its first (or last) and runs it.
  bool RunChunksOf(size_t thread, bool from_front);

  // Constant after construction.
  const ThreadPoolOptions options_;
  std::vector<Run> runs_;  // the caller's, then those of threads_
  std::vector<std::thread> threads_;

  // Written by the caller while no chunk is open; read by whoever has taken a chunk.
  Job job_ = {};

  alignas(64) std::atomic<uint32_t> unfinished_ = 0;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;  // what parked threads wait on
  std::atomic<bool> stopping_ = false;
};

}  // namespace rempart::worker
