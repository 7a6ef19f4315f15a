// SPDX-License-Identifier: Apache-2.0
// bandwidth_bench THREADS: bytes per second that THREADS threads read from memory together, each
// its own part of 1 GiB, the best of several ways and passes: how much a thread has under way
// decides what it gets. What one sequence's decode can reach at most. Prints one JSON object.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <span>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{1} << 30;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kPasses = 4;

// Places that a thread reads at once, and how far ahead of itself it asks for memory; 0: it leaves
// that to the hardware.
struct Way {
  size_t streams;
  size_t ahead_bytes;
};
constexpr Way kWays[] = {{1, 0}, {1, 4096}, {1, 16384}, {4, 0}, {4, 4096}};

using Word =
    uint64_t __attribute__((vector_size(16), may_alias));  // what every x86-64 loads at once

// A cache line at a time into four sums, so that no addition waits for the one before.
uint64_t Sum(const uint64_t* values, size_t count, Way way) {
  constexpr size_t kLine = 8;
  Word a = {}, b = {}, c = {}, d = {};
  const size_t share = count / way.streams / kLine * kLine;
  for (size_t i = 0; i < share; i += kLine) {
    for (size_t stream = 0; stream < way.streams; ++stream) {
      const uint64_t* at = values + stream * share + i;
      if (way.ahead_bytes > 0) __builtin_prefetch(at + way.ahead_bytes / sizeof(uint64_t));
      const auto* words = reinterpret_cast<const Word*>(at);
      a += words[0];
      b += words[1];
      c += words[2];
      d += words[3];
    }
  }
  const Word sum = a + b + c + d;
  return sum[0] + sum[1];
}

// Seconds of one pass over all of it.
double Pass(std::span<const uint64_t> values, int threads, Way way, uint64_t* sum) {
  const size_t share = values.size() / threads;
  std::vector<uint64_t> sums(threads);
  std::vector<std::thread> readers;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&, i] { sums[i] = Sum(values.data() + i * share, share, way); });
  }
  for (std::thread& reader : readers) reader.join();
  const auto end = std::chrono::steady_clock::now();
  for (const uint64_t part : sums) *sum += part;
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc == 2 ? std::atoi(argv[1]) : 0;
  if (threads < 1 || threads > 1024) {
    std::fprintf(stderr, "usage: bandwidth_bench THREADS (1 to 1024)\n");
    return 2;
  }
  // In huge pages where the machine gives them, as weights are; written, so that no page is zero's.
  auto* memory = static_cast<uint64_t*>(std::aligned_alloc(kHugePage, kBytes));
  if (memory == nullptr) {
    std::fprintf(stderr, "bandwidth_bench: no memory for 1 GiB\n");
    return 1;
  }
  (void)madvise(memory, kBytes, MADV_HUGEPAGE);
  const std::span<uint64_t> values(memory, kBytes / sizeof(uint64_t));
  std::fill(values.begin(), values.end(), 1);
  uint64_t sum = 0;
  double best = 1e9;
  for (int pass = 0; pass < kPasses; ++pass) {
    for (const Way way : kWays) best = std::min(best, Pass(values, threads, way, &sum));
  }
  const size_t read = values.size() / threads * threads * sizeof(uint64_t);
  if (sum < kPasses * std::size(kWays) * (values.size() / 2))
    return 1;  // nobody may leave the reading out
  std::free(memory);
  std::printf("{\"gb_per_s\": %.2f}\n", static_cast<double>(read) / best / 1e9);
  return 0;
}
