// SPDX-License-Identifier: Apache-2.0
// The part of cuBLASLt's ABI that is used (cuBLAS documentation, "Using the cuBLASLt API"), as it
// is since 12.9. Its header comes with a toolkit, which a build does not need; where there is one,
// cublas_lt_abi_check.cc compares.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
using CublasLtHandle = struct CublasLtOpaque*;
using CublasLtOperation = struct CublasLtOpaqueOperation*;
using CublasLtLayout = struct CublasLtOpaqueLayout*;
using CublasLtPreference = struct CublasLtOpaquePreference*;
struct CublasLtAlgorithm {
  uint64_t data[8];
};
struct CublasLtHeuristic {
  CublasLtAlgorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
}

// Of cublasStatus_t.
inline constexpr int kCublasSuccess = 0;
inline constexpr int kCublasInvalidValue = 7;
inline constexpr int kCublasNotSupported = 15;
// Of cublasOperation_t, cublasComputeType_t and cudaDataType_t.
inline constexpr int kCublasAsItIs = 0;
inline constexpr int kCublasTransposed = 1;
inline constexpr int kCublasComputeF32 = 68;
inline constexpr int kCublasComputeInt32 = 72;
inline constexpr int kCudaF32 = 0;
inline constexpr int kCudaInt8 = 3;
inline constexpr int kCudaInt32 = 10;
inline constexpr int kCudaBf16 = 14;
inline constexpr int kCudaE4M3 = 28;
// Of cublasLtMatmulDescAttributes_t.
inline constexpr int kLtTransposeA = 3;
inline constexpr int kLtTransposeB = 4;
inline constexpr int kLtScalesA = 17;
inline constexpr int kLtScalesB = 18;
inline constexpr int kLtScaleModeA = 31;  // since 12.8
inline constexpr int kLtScaleModeB = 32;
// Of cublasLtMatmulMatrixScale_t, since 12.9: an F32 scale a row of A or column of B; for each 128
// along K; for each 128 x 128.
inline constexpr int32_t kLtScaleRows = 3;
inline constexpr int32_t kLtScaleVectors = 4;
inline constexpr int32_t kLtScaleBlocks = 5;
// Of cublasLtMatmulPreferenceAttributes_t.
inline constexpr int kLtMaxWorkspaceBytes = 1;
inline constexpr int kLtMinAlignmentA = 5;
inline constexpr int kLtMinAlignmentB = 6;
inline constexpr int kLtMinAlignmentC = 7;
inline constexpr int kLtMinAlignmentD = 8;

// X(member, symbol, result, parameters)
#define REMPART_CUBLAS_LT(X)                                                                      \
  X(create, cublasLtCreate, int, (CublasLtHandle*))                                               \
  X(destroy, cublasLtDestroy, int, (CublasLtHandle))                                              \
  X(get_version, cublasLtGetVersion, size_t, ())                                                  \
  X(matmul, cublasLtMatmul, int,                                                                  \
    (CublasLtHandle, CublasLtOperation, const void* alpha, const void* a, CublasLtLayout,         \
     const void* b, CublasLtLayout, const void* beta, const void* c, CublasLtLayout, void* d,     \
     CublasLtLayout, const CublasLtAlgorithm*, void* workspace, size_t workspace_bytes,           \
     void* stream))                                                                               \
  X(heuristic, cublasLtMatmulAlgoGetHeuristic, int,                                               \
    (CublasLtHandle, CublasLtOperation, CublasLtLayout a, CublasLtLayout b, CublasLtLayout c,     \
     CublasLtLayout d, CublasLtPreference, int wanted, CublasLtHeuristic*, int* found))           \
  X(make_operation, cublasLtMatmulDescCreate, int, (CublasLtOperation*, int compute, int factor)) \
  X(free_operation, cublasLtMatmulDescDestroy, int, (CublasLtOperation))                          \
  X(set_operation, cublasLtMatmulDescSetAttribute, int,                                           \
    (CublasLtOperation, int attribute, const void*, size_t bytes))                                \
  X(make_preference, cublasLtMatmulPreferenceCreate, int, (CublasLtPreference*))                  \
  X(free_preference, cublasLtMatmulPreferenceDestroy, int, (CublasLtPreference))                  \
  X(set_preference, cublasLtMatmulPreferenceSetAttribute, int,                                    \
    (CublasLtPreference, int attribute, const void*, size_t bytes))                               \
  X(make_layout, cublasLtMatrixLayoutCreate, int,                                                 \
    (CublasLtLayout*, int type, uint64_t rows, uint64_t cols, int64_t stride))                    \
  X(free_layout, cublasLtMatrixLayoutDestroy, int, (CublasLtLayout))
