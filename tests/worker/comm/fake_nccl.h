// SPDX-License-Identifier: Apache-2.0
// What a test may ask of the fake libnccl (fake_nccl.cc), and what it has seen. One for a process.
#pragma once

#include <atomic>

struct FakeNcclControls {
  // Ranks never come together, or a collective never ends: ncclInProgress for ever.
  std::atomic<bool> stalls_init = false;
  std::atomic<bool> stalls_collectives = false;
  // Of ncclCommInitRankConfig and of collectives, instead of doing anything; 0: none.
  std::atomic<int> init_result = 0;
  std::atomic<int> collective_result = 0;
  // That ncclCommGetAsyncError tells; 0: none.
  std::atomic<int> async_error = 0;

  // Of ncclCommWindowRegister, instead of doing anything; 0: none. And whether it takes memory but
  // has no use for it.
  std::atomic<int> register_result = 0;
  std::atomic<bool> has_no_use_for_windows = false;

  std::atomic<int> allocations = 0;  // of ncclMemAlloc that are not freed
  std::atomic<int> windows = 0;      // registered so far, by rank
  // Sums and gathers of which every rank's memory lay at the same offset of its window.
  std::atomic<int> symmetric = 0;
  std::atomic<int> inits = 0;
  std::atomic<int> blocking_inits = 0;
  std::atomic<int> collectives = 0;
  std::atomic<int> gathers = 0;  // of these
  std::atomic<int> aborts = 0;
};

extern "C" FakeNcclControls* FakeNccl();
