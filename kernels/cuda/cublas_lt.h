// SPDX-License-Identifier: Apache-2.0
// Dense products by cuBLASLt, which is loaded at run time: BF16 weights as they are; FP8 by rows
// and INT8 weights against activations quantised by rows. FP8 by blocks of 128 x 128 is not among
// them: the library wants activations in groups of 128, a multiple of four tokens, and compute
// capability 9.0. Plans are chosen by the library's heuristic once for each shape and kept.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

// Activations of a product by rows (op quantize_rows), and room for what int8 products add up to.
struct QuantizedTokens {
  const void* codes = nullptr;    // [num_tokens, cols]
  const float* scales = nullptr;  // [num_tokens]
  int32_t* sums = nullptr;        // [num_tokens, rows], of INT8
};

class CublasLt {
 public:
  // Null when the library cannot be loaded; *why says so. `workspace` is device memory. `library`
  // may be empty: the loader's path.
  static std::unique_ptr<CublasLt> Load(const std::string& library, void* workspace,
                                        int64_t workspace_bytes, std::string* why);
  virtual ~CublasLt() = default;

  // Queues y = x w^T. False when the library has no way for this shape and format; nothing is
  // queued then. For FP8 and INT8 weights x is what `tokens` says; of INT8 ones the result is in
  // tokens.sums, for op scale_sums.
  virtual bool Matmul(const DeviceMatmulArgs& args, const QuantizedTokens& tokens,
                      DeviceStream stream) = 0;
  // "13.0.2" of the library found.
  virtual std::string Version() const = 0;
};

}  // namespace rempart::kernels::cuda
