// SPDX-License-Identifier: Apache-2.0
// What a test may ask of the fake libcublasLt (fake_cublas_lt.cc), and what it has seen. One for a
// process.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>

struct FakeCublasLtControls {
  std::atomic<int64_t> version = 130002;
  std::atomic<int> capability = 90;  // of the GPU
  // The heuristic knows no way for so many columns of B, which are tokens.
  std::atomic<int64_t> refused_columns = -1;
  // Of cublasLtMatmul, instead of doing anything; 0: none.
  std::atomic<int> matmul_result = 0;

  std::atomic<int> alive = 0;  // handles, operations, layouts and preferences
  std::atomic<int> heuristics = 0;
  // Products so far, by what A is scaled by.
  std::atomic<int> bf16_products = 0, int8_products = 0, row_products = 0, block_products = 0;

  std::mutex mutex;
  std::string complaint;  // the first call that the documentation forbids
  // Of products with blocks, of FP8 by rows, of INT8.
  std::set<int64_t> block_columns, row_columns, int8_columns;
};

extern "C" FakeCublasLtControls* FakeCublasLt();
