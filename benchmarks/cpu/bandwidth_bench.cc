// SPDX-License-Identifier: Apache-2.0
// bandwidth_bench THREADS: bytes per second that THREADS threads read from memory together, each
// its own part of 1 GiB, the best of several passes. What one sequence's decode can reach at most.
// Prints one JSON object.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{1} << 30;
constexpr int kPasses = 7;

// Eight sums, so that no addition waits for the one before.
uint64_t Sum(const uint64_t* values, size_t count) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

// Seconds of one pass over all of it.
double Pass(const std::vector<uint64_t>& values, int threads, uint64_t* sum) {
  const size_t share = values.size() / threads;
  std::vector<uint64_t> sums(threads);
  std::vector<std::thread> readers;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&, i] { sums[i] = Sum(values.data() + i * share, share); });
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
  const std::vector<uint64_t> values(kBytes / sizeof(uint64_t), 1);  // written: no shared zero page
  uint64_t sum = 0;
  double best = 1e9;
  for (int pass = 0; pass < kPasses; ++pass) best = std::min(best, Pass(values, threads, &sum));
  const size_t read = values.size() / threads * threads * sizeof(uint64_t);
  if (sum < kPasses * (values.size() / 2)) return 1;  // nobody may leave the reading out
  std::printf("{\"gb_per_s\": %.2f}\n", static_cast<double>(read) / best / 1e9);
  return 0;
}
