// SPDX-License-Identifier: Apache-2.0
#include "worker/device/thread_pool.h"

#include <algorithm>
#include <chrono>

#include "common/check.h"
#include "worker/device/cpu_count.h"
#include "worker/device/numa.h"

namespace rempart::worker {
namespace {

constexpr int kFirstShift = 32;  // of Run::left
constexpr uint64_t kEndMask = 0xffffffffu;

inline void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or until the time is up; true when done().
template <class Done>
bool SpinUntil(int spin_us, Done done) {
  if (done()) return true;
  if (spin_us <= 0) return false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
  do {
    for (int i = 0; i < 32; ++i) {
      Relax();
      if (done()) return true;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(const ThreadPoolOptions& options)
    : options_(options), runs_(options.threads > 0 ? options.threads : UsableCpuCount()) {
  for (size_t i = 1; i < runs_.size(); ++i) threads_.emplace_back([this, i] { RunThread(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool ThreadPool::RunChunksOf(size_t thread, bool from_front) {
  bool ran = false;
  std::atomic<uint64_t>& left = runs_[thread].left;
  uint64_t seen = left.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t first = seen >> kFirstShift;
    const uint64_t end = seen & kEndMask;
    if (first == end) return ran;
    const uint64_t rest = from_front ? seen + (uint64_t{1} << kFirstShift) : seen - 1;
    if (!left.compare_exchange_weak(seen, rest, std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      continue;
    }
    // This chunk is ours, so the job stays as it is until we report the chunk as finished.
    const int64_t begin = static_cast<int64_t>(from_front ? first : end - 1) * job_.chunk;
    (*job_.body)(begin, std::min(begin + job_.chunk, job_.n));
    ran = true;
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
    seen = left.load(std::memory_order_acquire);
  }
}

bool ThreadPool::RunChunks(size_t self) {
  bool ran = RunChunksOf(self, true);
  for (size_t i = 1; i < runs_.size(); ++i) {
    ran = RunChunksOf((self + i) % runs_.size(), false) || ran;
  }
  return ran;
}

void ThreadPool::ParallelFor(int64_t n, int64_t chunk,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  CHECK_GT(chunk, 0);
  if (n <= 0) return;
  const int64_t chunk_count = (n + chunk - 1) / chunk;
  if (threads_.empty() || chunk_count == 1) {
    for (int64_t begin = 0; begin < n; begin += chunk) body(begin, std::min(begin + chunk, n));
    return;
  }
  CHECK_LT(chunk_count, int64_t{1} << 32);
  const auto count = static_cast<uint32_t>(chunk_count);
  job_ = {n, chunk, &body};
  unfinished_.store(count, std::memory_order_relaxed);
  const uint64_t threads = runs_.size();
  for (uint64_t i = 0; i < threads; ++i) {
    const uint64_t first = count * i / threads, end = count * (i + 1) / threads;
    runs_[i].left.store((first << kFirstShift) | end, std::memory_order_release);
  }
  epoch_.fetch_add(1);
  epoch_.notify_all();  // no system call unless a thread is parked
  RunChunks(0);
  const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  while (!SpinUntil(options_.spin_us, finished)) {
    const uint32_t left = unfinished_.load(std::memory_order_acquire);
    if (left != 0) unfinished_.wait(left, std::memory_order_acquire);
  }
}

void ThreadPool::RunThread(size_t self) {
  BindThisThread(options_.cpus);
  while (!stopping_.load()) {
    const uint32_t seen = epoch_.load();
    if (RunChunks(self)) continue;
    const auto new_job = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!SpinUntil(options_.spin_us, new_job)) epoch_.wait(seen);
  }
}

}  // namespace rempart::worker
