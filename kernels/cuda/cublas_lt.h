// SPDX-License-Identifier: Apache-2.0
// Dense products by cuBLASLt, which is loaded at run time, so this compiles everywhere. BF16
// weights as they are; FP8 by rows and INT8 against activations quantised by rows; FP8 by blocks of
// 128 x 128 against activations quantised by groups of 128. Plans are chosen by the library's
// heuristic once for each shape and kept. Which products it is asked for, and how their activations
// are made, is the business of blas_products.h.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "kernels/cuda/cublas_lt_abi.h"
#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

// Activations of a product (op quantize_rows), and room for what int8 products add up to.
struct QuantizedTokens {
  const void* codes = nullptr;    // [num_tokens, cols]
  const float* scales = nullptr;  // [num_tokens]; for kFP8Block [cols / 128, num_tokens]
  int32_t* sums = nullptr;        // [num_tokens, rows], of INT8
};

// What alignment is counted up to: the largest power of two that divides an address, at most this.
inline constexpr uint32_t kBlasAligned = 256;
uint32_t AlignmentOf(const void* memory);

// The library's functions.
struct CublasLtFunctions {
#define REMPART_DECLARE(member, symbol, result, parameters) result(*member) parameters = nullptr;
  REMPART_CUBLAS_LT(REMPART_DECLARE)
#undef REMPART_DECLARE
};

class CublasLt {
 public:
  // Null when the library cannot be loaded; *why says so. `workspace` is device memory. `library`:
  // its path, or its name where the loader finds it.
  static std::unique_ptr<CublasLt> Load(const std::string& library, void* workspace,
                                        int64_t workspace_bytes, std::string* why);
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  ~CublasLt();

  // Whether the library has a way for this shape, these formats and where the arrays lie.
  bool Has(const DeviceMatmulArgs& args, const QuantizedTokens& tokens);
  // Queues y = x w^T. False when the library has no way, or fails; nothing is queued then. For FP8
  // and INT8 weights x is what `tokens` says; of INT8 ones the result is in tokens.sums, for op
  // scale_sums. For kFP8Block num_tokens is a multiple of four.
  bool Matmul(const DeviceMatmulArgs& args, const QuantizedTokens& tokens, DeviceStream stream);
  // As cublasLtGetVersion counts: 12.9.0 is 120900.
  int64_t version() const { return static_cast<int64_t>(lt_.get_version()); }

 private:
  struct Plan {
    CublasLtOperation operation = nullptr;
    CublasLtLayout w = nullptr, x = nullptr, y = nullptr;
    CublasLtAlgorithm algorithm = {};
    bool exists = false;
  };
  // How w, x and y lie. The library takes kBlasAligned for granted where it is not told, and rows
  // of a part of a matrix begin elsewhere.
  struct Alignments {
    uint32_t w, x, y;
    auto operator<=>(const Alignments&) const = default;
  };
  // A product as the library sees it.
  struct Operands {
    const void* x = nullptr;
    int64_t x_stride = 0;
    void* y = nullptr;
    int64_t y_stride = 0;
    int in = kCudaBf16;
    int out = kCudaBf16;
    int compute = kCublasComputeF32;
    int factor = kCudaF32;  // of what the product is multiplied by
  };
  // Format, rows, cols, tokens, strides of x and y, type of y.
  using Shape =
      std::tuple<DeviceFormat, int64_t, int64_t, int64_t, int64_t, int64_t, int, Alignments>;

  CublasLt(const CublasLtFunctions& lt, CublasLtHandle handle, void* workspace,
           int64_t workspace_bytes)
      : lt_(lt),
        handle_(handle),
        workspace_(workspace),
        workspace_bytes_(static_cast<size_t>(workspace_bytes)) {}

  static Operands OperandsOf(const DeviceMatmulArgs& args, const QuantizedTokens& tokens);
  const Plan& PlanOf(const DeviceMatmulArgs& args, const Operands& of,
                     const QuantizedTokens& tokens);
  Plan MakePlan(const DeviceMatmulArgs& args, const Operands& of, const Alignments& aligned,
                const QuantizedTokens& tokens) const;
  bool SetScaleModes(CublasLtOperation operation, DeviceFormat format) const;
  bool SetScales(CublasLtOperation operation, const DeviceMatmulArgs& args,
                 const QuantizedTokens& tokens) const;
  void Destroy(const Plan& plan) const;
  void Clear();

  const CublasLtFunctions lt_;
  const CublasLtHandle handle_;
  void* const workspace_;
  const size_t workspace_bytes_;
  std::map<Shape, Plan> plans_;
};

}  // namespace rempart::kernels::cuda
