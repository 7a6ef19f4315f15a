// SPDX-License-Identifier: Apache-2.0
// The emulator finds the mistakes that it is there for, and its twins of instructions do what the
// PTX manual says.
#include "kernels/cuda/emulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <vector>

#include "kernels/cuda/primitives.h"

namespace rempart::kernels::cuda {
namespace {

// For all tests of this binary, the kernels' too.
[[maybe_unused]] const bool shows_threads = [] {
  emulator::ShowThreads();
  return true;
}();

TEST(Emulator, RunsEveryThreadOfEveryBlock) {
  std::vector<int> seen(3 * 2 * 70, 0);
  emulator::Run({3, 2, 1}, 70, 0,
                [&] { ++seen[(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x]; });
  for (const int count : seen) EXPECT_EQ(count, 1);
}

TEST(Emulator, BarriersOrderSharedMemory) {
  for (const auto order : {emulator::ThreadOrder::kForward, emulator::ThreadOrder::kReverse}) {
    emulator::SetThreadOrder(order);
    std::vector<int> read(64, -1);
    emulator::Run({1, 1, 1}, 64, 64 * sizeof(int), [&] {
      int* shared = DynamicShared<int>();
      shared[threadIdx.x] = static_cast<int>(threadIdx.x);
      __syncthreads();
      read[threadIdx.x] = shared[63 - threadIdx.x];
    });
    for (int i = 0; i < 64; ++i) EXPECT_EQ(read[i], 63 - i);
  }
  emulator::SetThreadOrder(emulator::ThreadOrder::kForward);
}

// How many threads read what has not been written yet.
int RunWithoutABarrier() {
  int wrong[64] = {};
  emulator::Run({1, 1, 1}, 64, 64 * sizeof(int), [&] {
    int* shared = DynamicShared<int>();
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    wrong[threadIdx.x] = shared[63 - threadIdx.x] != 63 - static_cast<int>(threadIdx.x) ? 1 : 0;
  });
  return static_cast<int>(std::count(std::begin(wrong), std::end(wrong), 1));
}

#if defined(REMPART_TSAN_FIBERS)
constexpr int kTsanHasReported = 66;  // its exit status

TEST(EmulatorDeathTest, TheThreadSanitizerSeesAMissingBarrierInEitherOrder) {
  for (const auto order : {emulator::ThreadOrder::kForward, emulator::ThreadOrder::kReverse}) {
    const auto run = [&] {
      emulator::SetThreadOrder(order);
      RunWithoutABarrier();
      std::exit(0);
    };
    EXPECT_EXIT(run(), testing::ExitedWithCode(kTsanHasReported), "data race");
  }
}

TEST(EmulatorDeathTest, TheThreadSanitizerSeesBlocksThatRace) {
  const auto run = [] {
    int sum = 0;
    emulator::Run({2, 1, 1}, 32, 0, [&] {
      if (threadIdx.x == blockIdx.x) ++sum;
    });
    std::exit(0);
  };
  EXPECT_EXIT(run(), testing::ExitedWithCode(kTsanHasReported), "data race");
}
#else
TEST(Emulator, AMissingBarrierShowsInOneOfTheOrders) {
  int wrong = 0;
  for (const auto order : {emulator::ThreadOrder::kForward, emulator::ThreadOrder::kReverse}) {
    emulator::SetThreadOrder(order);
    wrong += RunWithoutABarrier();
  }
  emulator::SetThreadOrder(emulator::ThreadOrder::kForward);
  EXPECT_GT(wrong, 0);
}
#endif

TEST(EmulatorDeathTest, ABarrierThatNotAllReach) {
  EXPECT_DEATH(emulator::Run({1, 1, 1}, 64, 0,
                             [] {
                               if (threadIdx.x < 32) __syncthreads();
                             }),
               "ended before a barrier");
}

TEST(EmulatorDeathTest, AShuffleWithLanesMissing) {
  EXPECT_DEATH(emulator::Run({1, 1, 1}, 32, 0,
                             [] {
                               if (threadIdx.x != 7) ShuffleXor(1.0f, 1);
                             }),
               "lanes wait for lanes");
}

// What only a GPU would refuse.
TEST(EmulatorDeathTest, AGridThatNoGpuStarts) {
  const auto run = [](RempartDim3 grid, unsigned threads, size_t shared_bytes) {
    emulator::Run(grid, threads, shared_bytes, [] {});
  };
  run({1, 65535, 1}, 1, 0);
  run({1, 1, 65535}, 1, 0);
  run({65536, 1, 1}, 1, 0);
  run({1, 1, 1}, 1024, 101376);
  EXPECT_DEATH(run({1, 65536, 1}, 1, 0), "at most 65535 blocks in y");
  EXPECT_DEATH(run({1, 1, 65536}, 1, 0), "at most 65535 blocks in y and in z");
  EXPECT_DEATH(run({0x80000000u, 1, 1}, 1, 0), "at most 2147483647 blocks in x");
  EXPECT_DEATH(run({1, 0, 1}, 1, 0), "no side of a grid may be 0");
  EXPECT_DEATH(run({1, 1, 1}, 1025, 0), "a block has 1 to 1024 threads");
  EXPECT_DEATH(run({1, 1, 1}, 1, 101377), "at most 101376 bytes of shared memory");
}

TEST(EmulatorDeathTest, AnAddressThatIsNotAligned) {
  alignas(16) static uint8_t memory[64] = {};
  const auto run = [](unsigned threads, const std::function<void(uint8_t*)>& body) {
    emulator::Run({1, 1, 1}, threads, 1024, [&] { body(DynamicShared<uint8_t>()); });
  };
  const auto copy = [&](int to, int from) {
    run(1, [&](uint8_t* shared) { CopyAsync16(shared + to, memory + from, true); });
  };
  copy(16, 16);
  EXPECT_DEATH(copy(8, 0), "cp.async to shared memory of 16 bytes");
  EXPECT_DEATH(copy(0, 4), "cp.async from global memory of 16 bytes");
  EXPECT_DEATH(run(1, [](uint8_t* shared) { CopyAsync16(shared, memory + 4, false); }),
               "cp.async from global memory");
  uint32_t r[4];
  EXPECT_DEATH(run(32, [&](uint8_t* shared) { LoadMatrix(r, shared + 16 * Lane() + 2); }),
               "ldmatrix of 16 bytes");
  EXPECT_DEATH(run(1, [](uint8_t*) { (void)*Wide<uint4>(memory + 8); }),
               "an access of 16 bytes at .*a GPU ends a kernel");
  EXPECT_DEATH(run(1, [](uint8_t*) { *Wide<uint32_t>(memory + 2) = 1; }), "an access of 4 bytes");
}

TEST(Emulator, SharedMemoryBeginsAsNaN) {
  emulator::Run({2, 1, 1}, 32, 16, [] {
    const float first = *DynamicShared<float>();
    EXPECT_NE(first, first);
    __syncthreads();
    if (threadIdx.x == 0) *DynamicShared<float>() = 1.0f;
  });
}

TEST(Emulator, AsynchronousCopiesArriveAtTheirWait) {
  alignas(16) const uint32_t from[4] = {1, 2, 3, 4};
  emulator::Run({1, 1, 1}, 1, 48, [&] {
    uint32_t* shared = DynamicShared<uint32_t>();
    CopyAsync16(shared, from, true);
    CommitCopies();
    CopyAsync16(shared + 4, from, true);
    CopyAsync16(shared + 8, nullptr, false);
    CommitCopies();
    EXPECT_EQ(shared[0], 0xffffffffu);
    WaitForCopies<1>();
    EXPECT_EQ(shared[3], 4u);
    EXPECT_EQ(shared[4], 0xffffffffu);
    WaitForCopies<0>();
    EXPECT_EQ(shared[4], 1u);
    EXPECT_EQ(shared[11], 0u);
  });
}

TEST(Emulator, ShufflesExchangeWithinAWarp) {
  std::vector<float> sums(64);
  emulator::Run({1, 1, 1}, 64, 0,
                [&] { sums[threadIdx.x] = WarpSum(static_cast<float>(threadIdx.x)); });
  for (int i = 0; i < 64; ++i) EXPECT_EQ(sums[i], i < 32 ? 496.0f : 1520.0f);
}

// a [16, 16] times b [16, 8] through the documented fragments, by LoadMatrix as kernels use it.
TEST(Emulator, TensorCoresMultiplyMatricesThatLoadMatrixLoads) {
  std::vector<float> actual(16 * 8);
  const auto a_of = [](int row, int k) { return static_cast<float>(row - 3 * k % 7); };
  const auto b_of = [](int k, int col) { return static_cast<float>(k % 5 - col); };
  emulator::Run({1, 1, 1}, 32, (16 * 16 + 16 * 16) * 2, [&] {
    auto* a_shared = DynamicShared<uint16_t>();
    uint16_t* b_shared = a_shared + 256;  // [col, k], of which 8 columns count
    const int lane = Lane();
    for (int i = lane; i < 256; i += 32) {
      a_shared[i] = ToBf16(a_of(i / 16, i % 16)).bits;
      b_shared[i] = ToBf16(i / 16 < 8 ? b_of(i % 16, i / 16) : 99.0f).bits;
    }
    __syncthreads();
    uint32_t a[4], b[4];
    LoadMatrix(a, a_shared + lane % 16 * 16 + lane / 16 * 8);
    LoadMatrix(b, b_shared + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    float d[4] = {};
    const uint32_t b_low[2] = {b[0], b[1]};
    MmaBf16(d, a, b_low);
    for (int i = 0; i < 4; ++i) actual[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2] = d[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a_of(row, k) * b_of(k, col);
      EXPECT_EQ(actual[row * 8 + col], sum) << row << ", " << col;
    }
  }
}

// PTX: with .trans a lane holds elements (2 * (lane % 4), lane / 4) and the one below.
TEST(Emulator, LoadMatrixTransposes) {
  emulator::Run({1, 1, 1}, 32, 32 * 8 * 2, [&] {
    auto* shared = DynamicShared<uint16_t>();
    const int lane = Lane();
    for (int i = lane; i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
    __syncthreads();
    uint32_t r[4];
    LoadMatrixT(r, shared + lane * 8);
    for (int m = 0; m < 4; ++m) {
      const auto low = static_cast<uint32_t>(m * 64 + 2 * (lane % 4) * 8 + lane / 4);
      EXPECT_EQ(r[m], low | (low + 8) << 16);
    }
  });
}

}  // namespace
}  // namespace rempart::kernels::cuda
