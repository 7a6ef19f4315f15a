// SPDX-License-Identifier: Apache-2.0
// Compares cublas_lt_abi.h with the header of the toolkit that this is built with.
#include <cublasLt.h>

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/cublas_lt_abi.h"

static_assert(kCublasSuccess == CUBLAS_STATUS_SUCCESS);
static_assert(kCublasInvalidValue == CUBLAS_STATUS_INVALID_VALUE);
static_assert(kCublasNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(kCublasAsItIs == CUBLAS_OP_N && kCublasTransposed == CUBLAS_OP_T);
static_assert(kCublasComputeF32 == CUBLAS_COMPUTE_32F);
static_assert(kCublasComputeInt32 == CUBLAS_COMPUTE_32I);
static_assert(kCudaF32 == CUDA_R_32F && kCudaInt8 == CUDA_R_8I && kCudaInt32 == CUDA_R_32I);
static_assert(kCudaBf16 == CUDA_R_16BF && kCudaE4M3 == CUDA_R_8F_E4M3);
static_assert(kLtTransposeA == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(kLtTransposeB == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(kLtScalesA == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
static_assert(kLtScalesB == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
#if CUBLAS_VERSION >= 120900
static_assert(kLtScaleModeA == CUBLASLT_MATMUL_DESC_A_SCALE_MODE);
static_assert(kLtScaleModeB == CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
static_assert(kLtScaleRows == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
static_assert(kLtScaleVectors == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
static_assert(kLtScaleBlocks == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
#endif
static_assert(kLtMaxWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(kLtMinAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(kLtMinAlignmentB == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(kLtMinAlignmentC == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(kLtMinAlignmentD == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(sizeof(CublasLtAlgorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(CublasLtHeuristic) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(CublasLtHeuristic, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(CublasLtHeuristic, state) ==
              offsetof(cublasLtMatmulHeuristicResult_t, state));

// Every function with the parameters that are declared for it: the library's own types are pointers
// and enumerations, and so are passed as these are.
namespace {

template <class A, class B>
constexpr bool PassedAlike() {
  return sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>;
}
template <class R, class... A, class S, class... B>
constexpr bool Alike(R (*)(A...), S (*)(B...)) {
  if constexpr (sizeof...(A) != sizeof...(B)) {
    return false;
  } else {
    return PassedAlike<R, S>() && (PassedAlike<A, B>() && ...);
  }
}
#define REMPART_COMPARE(member, symbol, result, parameters) \
  static_assert(Alike(decltype (&::symbol)(), static_cast<result(*) parameters>(nullptr)), #symbol);
REMPART_CUBLAS_LT(REMPART_COMPARE)
#undef REMPART_COMPARE

}  // namespace
