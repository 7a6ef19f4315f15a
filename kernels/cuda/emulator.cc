// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/emulator.h"

#include <ucontext.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define REMPART_ASAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define REMPART_ASAN_FIBERS 1
#endif
#endif
#if defined(REMPART_ASAN_FIBERS)
#include <sanitizer/common_interface_defs.h>
#endif
// To the thread sanitizer every fiber is a thread of its own once ShowThreads was called, ordered
// by what orders the threads of a block, and by nothing else. This file is compiled without it
// (kernels/cuda/emulated): how fibers take turns orders nothing.
#if defined(REMPART_TSAN_FIBERS)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

thread_local RempartDim3 threadIdx, blockIdx, blockDim, gridDim;

namespace rempart::kernels::cuda::emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned kLanes = 32;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes, zeros;
};

#if defined(REMPART_TSAN_FIBERS)
std::atomic<bool> shows_threads = false;
#endif

// What orders whom, for the thread sanitizer: all who release it, before all who acquire it later.
struct alignas(8) Order {
#if defined(REMPART_TSAN_FIBERS)
  void Release() {
    if (shows_threads) __tsan_release(this);
  }
  void Acquire() {
    if (shows_threads) __tsan_acquire(this);
  }
#else
  void Release() {}
  void Acquire() {}
#endif
};

struct Fiber {
  ~Fiber() {
#if defined(REMPART_TSAN_FIBERS)
    if (tsan != nullptr) __tsan_destroy_fiber(tsan);
#endif
  }

  void* stack_pointer = nullptr;
  std::unique_ptr<uint8_t[]> stack;
  State state = State::kDone;
  uint32_t words[2][kExchangeWords] = {};            // by parity of `exchanges`
  uint32_t all_words[kLanes * kExchangeWords] = {};  // of the last exchange
  uint32_t exchanges = 0;
  uint32_t warp_barriers = 0, block_barriers = 0;
  std::vector<std::vector<Copy>> copies;  // committed groups, oldest first
  std::vector<Copy> open_copies;
  void* asan_stack = nullptr;
  void* tsan = nullptr;
};

struct Block {
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
  unsigned threads = 0;
  unsigned current = 0;
  const std::function<void()>* body = nullptr;
  std::vector<uint8_t> shared;
  // Barriers by parity of their number: who is ahead releases the other one.
  Order begin, end, block_barriers[2], warp_barriers[kMaxThreads / kLanes][2];
  void* scheduler_tsan = nullptr;
  void* scheduler_stack_pointer = nullptr;
  void* scheduler_asan_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_bytes = 0;
  bool running = false;
#if !defined(__x86_64__)
  ucontext_t scheduler_context;
  std::vector<ucontext_t> contexts = std::vector<ucontext_t>(kMaxThreads);
#endif
};

thread_local std::unique_ptr<Block> block;
thread_local ThreadOrder order = ThreadOrder::kForward;

void FiberMain();

// Not by memcpy, which the thread sanitizer would see: these words are of the emulator.
void CopyWords(uint32_t* to, const uint32_t* from, int count) {
  for (int i = 0; i < count; ++i) to[i] = from[i];
}

// Which fiber runs from now on.
void TellFiber([[maybe_unused]] void* fiber) {
#if defined(REMPART_TSAN_FIBERS)
  if (shows_threads) __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync);
#endif
}

void MakeFiber(Fiber& fiber) {
  if (fiber.stack == nullptr) fiber.stack = std::make_unique<uint8_t[]>(kStackBytes);
#if defined(REMPART_TSAN_FIBERS)
  if (shows_threads && fiber.tsan == nullptr) fiber.tsan = __tsan_create_fiber(0);
#endif
}

// Filled with NaN. Of the exact size, so that the address sanitizer sees its end; to the thread
// sanitizer it is new in each block.
void MakeShared(size_t bytes) {
#if defined(REMPART_TSAN_FIBERS)
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  std::vector<uint8_t>(bytes, 0xff).swap(block->shared);
#if defined(REMPART_TSAN_FIBERS)
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#endif
}

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack, stores its pointer to *save, and goes on with the
// stack `load`.
extern "C" void RempartSwitchStack(void** save, void* load);
asm(R"(
.text
.globl RempartSwitchStack
.type RempartSwitchStack,@function
RempartSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size RempartSwitchStack,.-RempartSwitchStack
)");

void PrepareFiber(unsigned index) {
  Fiber& fiber = block->fibers[index];
  auto* top = reinterpret_cast<uint64_t*>(
      (reinterpret_cast<uintptr_t>(fiber.stack.get()) + kStackBytes) & ~uintptr_t{15});
  *--top = 0;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<uint64_t>(&FiberMain);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
}
void SwitchToFiber(unsigned index) {
  TellFiber(block->fibers[index].tsan);
  RempartSwitchStack(&block->scheduler_stack_pointer, block->fibers[index].stack_pointer);
}
void SwitchToScheduler(unsigned index) {
  TellFiber(block->scheduler_tsan);
  RempartSwitchStack(&block->fibers[index].stack_pointer, block->scheduler_stack_pointer);
}
#else
void PrepareFiber(unsigned index) {
  ucontext_t& context = block->contexts[index];
  getcontext(&context);
  context.uc_stack.ss_sp = block->fibers[index].stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, FiberMain, 0);
}
void SwitchToFiber(unsigned index) {
  TellFiber(block->fibers[index].tsan);
  swapcontext(&block->scheduler_context, &block->contexts[index]);
}
void SwitchToScheduler(unsigned index) {
  TellFiber(block->scheduler_tsan);
  swapcontext(&block->contexts[index], &block->scheduler_context);
}
#endif

void Resume(unsigned index) {
  block->current = index;
  threadIdx = {index, 0, 0};
#if defined(REMPART_ASAN_FIBERS)
  __sanitizer_start_switch_fiber(&block->scheduler_asan_stack, block->fibers[index].stack.get(),
                                 kStackBytes);
#endif
  SwitchToFiber(index);
#if defined(REMPART_ASAN_FIBERS)
  __sanitizer_finish_switch_fiber(block->scheduler_asan_stack, nullptr, nullptr);
#endif
}

// From a fiber, back to the scheduler; returns when the scheduler resumes the fiber.
void Yield(State state) {
  const unsigned index = block->current;
  Fiber& fiber = block->fibers[index];
  fiber.state = state;
#if defined(REMPART_ASAN_FIBERS)
  __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &fiber.asan_stack,
                                 block->scheduler_bottom, block->scheduler_bytes);
#endif
  SwitchToScheduler(index);
#if defined(REMPART_ASAN_FIBERS)
  __sanitizer_finish_switch_fiber(fiber.asan_stack, &block->scheduler_bottom,
                                  &block->scheduler_bytes);
#endif
}

void FiberMain() {
#if defined(REMPART_ASAN_FIBERS)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_bottom, &block->scheduler_bytes);
#endif
  block->begin.Acquire();
  (*block->body)();
  // Copies that nobody has waited for.
  block->fibers[block->current].copies.clear();
  block->fibers[block->current].open_copies.clear();
  block->end.Release();
  Yield(State::kDone);
  std::abort();
}

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "emulator: block (%u, %u, %u), %u threads: %s\n", blockIdx.x, blockIdx.y,
               blockIdx.z, block->threads, what);
  for (unsigned i = 0; i < block->threads; ++i) {
    const Fiber& fiber = block->fibers[i];
    if (fiber.state == State::kAtWarpBarrier) {
      std::fprintf(stderr, "  thread %u waits for its warp\n", i);
    } else {
      std::fprintf(stderr, "  thread %u %s\n", i,
                   fiber.state == State::kDone ? "has ended" : "waits for the block");
    }
  }
  std::abort();
}

// Lets the warp go on when all its lanes have met. True when they have.
bool ReleaseWarp(unsigned first) {
  for (unsigned i = first; i < first + kLanes; ++i) {
    if (i >= block->threads || block->fibers[i].state != State::kAtWarpBarrier) return false;
  }
  for (unsigned i = first; i < first + kLanes; ++i) block->fibers[i].state = State::kReady;
  return true;
}

void RunWarp(unsigned first) {
  const unsigned end = first + kLanes < block->threads ? first + kLanes : block->threads;
  do {
    for (unsigned i = first; i < end; ++i) {
      const unsigned index = order == ThreadOrder::kForward ? i : end - 1 - (i - first);
      if (block->fibers[index].state == State::kReady) Resume(index);
    }
  } while (ReleaseWarp(first));
}

void RunBlock() {
  for (unsigned i = 0; i < block->threads; ++i) {
    Fiber& fiber = block->fibers[i];
    fiber.state = State::kReady;
    fiber.exchanges = fiber.warp_barriers = fiber.block_barriers = 0;
    PrepareFiber(i);
  }
  const unsigned warps = (block->threads + kLanes - 1) / kLanes;
  while (true) {
    for (unsigned i = 0; i < warps; ++i) {
      RunWarp((order == ThreadOrder::kForward ? i : warps - 1 - i) * kLanes);
    }
    bool at_barrier = false;
    bool stuck = false;
    for (unsigned i = 0; i < block->threads; ++i) {
      at_barrier |= block->fibers[i].state == State::kAtBlockBarrier;
      stuck |= block->fibers[i].state == State::kAtWarpBarrier;
    }
    if (stuck) Die("lanes wait for lanes that do not come");
    if (!at_barrier) return;
    for (unsigned i = 0; i < block->threads; ++i) {
      if (block->fibers[i].state == State::kDone) Die("a thread ended before a barrier of others");
      block->fibers[i].state = State::kReady;
    }
  }
}

// What makes a launch fail on one GPU or another.
void CheckStart(const RempartDim3& grid, unsigned threads, size_t shared_bytes) {
  const char* why = nullptr;
  if (block->running) why = "from within a kernel";
  if (threads == 0 || threads > kMaxThreads) why = "a block has 1 to 1024 threads";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) why = "no side of a grid may be 0";
  if (grid.x > kMaxGridX) why = "a grid has at most 2147483647 blocks in x";
  if (grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    why = "a grid has at most 65535 blocks in y and in z";
  }
  if (shared_bytes > kMaxSharedBytes) why = "a block has at most 101376 bytes of shared memory";
  if (why == nullptr) return;
  std::fprintf(stderr,
               "emulator: cannot start a grid of (%u, %u, %u) blocks of %u threads with %zu bytes "
               "of shared memory: %s\n",
               grid.x, grid.y, grid.z, threads, shared_bytes, why);
  std::abort();
}

}  // namespace

void ShowThreads() {
#if defined(REMPART_TSAN_FIBERS)
  shows_threads = true;
#endif
}

void SetThreadOrder(ThreadOrder new_order) { order = new_order; }

void Run(RempartDim3 grid, unsigned threads, size_t shared_bytes,
         const std::function<void()>& body) {
  if (block == nullptr) block = std::make_unique<Block>();
  CheckStart(grid, threads, shared_bytes);
  block->running = true;
  block->threads = threads;
  block->body = &body;
#if defined(REMPART_TSAN_FIBERS)
  block->scheduler_tsan = __tsan_get_current_fiber();
#endif
  for (unsigned i = 0; i < threads; ++i) MakeFiber(block->fibers[i]);
  block->begin.Release();
  gridDim = grid;
  blockDim = {threads, 1, 1};
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        MakeShared(shared_bytes);
        RunBlock();
      }
    }
  }
  block->end.Acquire();
  block->running = false;
}

void* DynamicShared() { return block->shared.data(); }

void BlockBarrier() {
  Fiber& fiber = block->fibers[block->current];
  Order& barrier = block->block_barriers[fiber.block_barriers++ & 1];
  barrier.Release();
  Yield(State::kAtBlockBarrier);
  barrier.Acquire();
}

void WarpBarrier() {
  Fiber& fiber = block->fibers[block->current];
  Order& barrier = block->warp_barriers[block->current / kLanes][fiber.warp_barriers++ & 1];
  barrier.Release();
  Yield(State::kAtWarpBarrier);
  barrier.Acquire();
}

const uint32_t* WarpExchange(const uint32_t* words, int count) {
  Fiber& fiber = block->fibers[block->current];
  // Two buffers in turn: a lane that is ahead writes the other one, and cannot be ahead by two.
  const uint32_t parity = fiber.exchanges++ & 1;
  CopyWords(fiber.words[parity], words, count);
  const unsigned first = block->current / kLanes * kLanes;
  WarpBarrier();
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    CopyWords(fiber.all_words + lane * kExchangeWords, block->fibers[first + lane].words[parity],
              count);
  }
  return fiber.all_words;
}

void DieUnaligned(const void* at, size_t bytes, const char* instruction) {
  std::fprintf(stderr, "emulator: %s of %zu bytes at %p, which is no multiple of that\n",
               instruction, bytes, at);
  if (block == nullptr || !block->running) std::abort();
  Die("a GPU ends a kernel for an address that is not aligned");
}

void CopyLater(void* to, const void* from, int bytes, int zeros) {
  const auto at_once = static_cast<size_t>(bytes + zeros);
  CheckAligned(to, at_once, "cp.async to shared memory");
  CheckAligned(from, at_once, "cp.async from global memory");
  block->fibers[block->current].open_copies.push_back({to, from, bytes, zeros});
}

void CommitCopies() {
  Fiber& fiber = block->fibers[block->current];
  fiber.copies.push_back(std::move(fiber.open_copies));
  fiber.open_copies.clear();
}

void WaitForCopies(int groups_left) {
  Fiber& fiber = block->fibers[block->current];
  while (fiber.copies.size() > static_cast<size_t>(groups_left)) {
    for (const Copy& copy : fiber.copies.front()) {
      // All zeros: there may be nothing to read from.
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      std::memset(static_cast<uint8_t*>(copy.to) + copy.bytes, 0, static_cast<size_t>(copy.zeros));
    }
    fiber.copies.erase(fiber.copies.begin());
  }
}

}  // namespace rempart::kernels::cuda::emulator
