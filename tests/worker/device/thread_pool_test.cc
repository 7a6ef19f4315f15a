// SPDX-License-Identifier: Apache-2.0
#include "worker/device/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <vector>

namespace rempart::worker {
namespace {

// (threads, spin_us, items, chunk)
class ThreadPoolShapes : public testing::TestWithParam<std::tuple<int, int, int, int>> {};

TEST_P(ThreadPoolShapes, EveryItemRunsExactlyOnce) {
  const auto [threads, spin_us, n, chunk_items] = GetParam();
  const int chunk = chunk_items;  // a binding cannot be captured
  ThreadPool pool({.threads = threads, .spin_us = spin_us});
  EXPECT_EQ(pool.threads(), threads);
  std::vector<int> runs(n, 0);
  for (int round = 0; round < 50; ++round) {
    pool.ParallelFor(n, chunk, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % chunk, 0);
      EXPECT_LE(end - begin, chunk);
      for (int64_t i = begin; i < end; ++i) ++runs[i];
    });
  }
  for (int count : runs) EXPECT_EQ(count, 50);
}

INSTANTIATE_TEST_SUITE_P(Sweep, ThreadPoolShapes,
                         testing::Combine(testing::Values(1, 2, 5), testing::Values(0, 60),
                                          testing::Values(0, 1, 7, 64, 1000),
                                          testing::Values(1, 16, 33)));

TEST(ThreadPool, ManySmallJobsBackToBack) {
  ThreadPool pool({.threads = 3, .spin_us = 5});
  int64_t total = 0;
  for (int round = 0; round < 20000; ++round) {
    std::atomic<int64_t> sum = 0;
    pool.ParallelFor(4, 1, [&](int64_t begin, int64_t) { sum.fetch_add(begin + round); });
    total += sum.load();
  }
  EXPECT_EQ(total, 20000 * 6 + 4 * (int64_t{20000} * 19999 / 2));
}

// Every thread waits inside its first chunk until all are in theirs: these are the first ones of
// equal shares, and so is what a thread takes next.
TEST(ThreadPool, EachThreadBeginsWithItsOwnShare) {
  constexpr int kThreads = 3, kChunks = 32;
  ThreadPool pool({.threads = kThreads, .spin_us = 60});
  std::mutex mu;
  std::map<std::thread::id, std::vector<int64_t>> taken;
  std::atomic<int> arrived = 0;
  pool.ParallelFor(kChunks, 1, [&](int64_t begin, int64_t) {
    size_t count = 0;
    {
      std::lock_guard lock(mu);
      std::vector<int64_t>& own = taken[std::this_thread::get_id()];
      own.push_back(begin);
      count = own.size();
    }
    if (count > 2) return;
    arrived.fetch_add(1);
    while (arrived.load() < kThreads * static_cast<int>(count)) std::this_thread::yield();
  });
  std::set<int64_t> firsts;
  for (const auto& [thread, chunks] : taken) {
    firsts.insert(chunks[0]);
    EXPECT_EQ(chunks[1], chunks[0] + 1);
  }
  EXPECT_EQ(firsts, (std::set<int64_t>{0, 10, 21}));
}

// One thread is held inside its chunk; all other chunks must still be done by the rest.
TEST(ThreadPool, AStalledThreadHoldsUpOnlyItsChunk) {
  ThreadPool pool({.threads = 2, .spin_us = 60});
  constexpr int kChunks = 64;
  std::mutex mu;
  std::set<int64_t> done;
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  pool.ParallelFor(kChunks, 1, [&](int64_t begin, int64_t) {
    if (begin == 0) {
      released.wait();
      return;
    }
    std::lock_guard lock(mu);
    done.insert(begin);
    if (done.size() == kChunks - 1) release.set_value();
  });
  EXPECT_EQ(done.size(), kChunks - 1);
}

TEST(ThreadPool, ParkedThreadsTakePartAgain) {
  ThreadPool pool({.threads = 2, .spin_us = 0});
  for (int round = 0; round < 20; ++round) {
    // Both chunks wait for each other, so this returns only when two threads run.
    std::atomic<int> arrived = 0;
    pool.ParallelFor(2, 1, [&](int64_t, int64_t) {
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived.load(), 2);
  }
}

TEST(ThreadPool, StopsWhileIdleAndWhileSpinning) {
  for (int spin_us : {0, 1000000}) ThreadPool pool({.threads = 4, .spin_us = spin_us});
}

}  // namespace
}  // namespace rempart::worker
