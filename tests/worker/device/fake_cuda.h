// SPDX-License-Identifier: Apache-2.0
// What a test may ask of the fake CUDA runtime (fake_cuda.cc), and what it has seen. One for a
// process.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <string>

struct FakeCudaControls {
  int gpus = 2;
  size_t free_bytes = size_t{1} << 30;  // of each GPU
  // What a call of this name returns, instead of doing anything.
  std::map<std::string, cudaError_t> results;
  // Something runs on every stream, so that nobody who asks finds it done.
  bool is_busy = false;
  bool gpus_reach_each_other = true;
  // After such an error every call of the process fails.
  cudaError_t broken = cudaSuccess;

  // Streams, events, graphs and memory that are not given back.
  std::atomic<int> alive = 0;
  // The first call that CUDA's documentation forbids.
  std::string complaint;
};

FakeCudaControls& FakeCuda();
// What a kernel that cannot be started leaves.
void FailFakeLaunch(cudaError_t error);
// Of the calling thread.
int FakeCurrentGpu();
