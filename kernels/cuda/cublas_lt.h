// SPDX-License-Identifier: Apache-2.0
// Dense products by cuBLASLt, which is loaded at run time: BF16 weights as they are; FP8 (by rows
// or by blocks of 128 x 128) and INT8 weights against activations quantised by rows. Plans are
// chosen by the library's heuristic once for each shape and kept.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

class CublasLt {
 public:
  // Null when the library cannot be loaded; *why says so. `workspace` is device memory. `library`
  // may be empty: the loader's path.
  static std::unique_ptr<CublasLt> Load(const std::string& library, void* workspace,
                                        int64_t workspace_bytes, std::string* why);
  virtual ~CublasLt() = default;

  // Queues y = x w^T. False when the library has no way for this shape and format; nothing is
  // queued then. For FP8 and INT8 weights `codes` and `scales` are x quantised by rows (op
  // quantize_rows); null for BF16.
  virtual bool Matmul(const DeviceMatmulArgs& args, const void* codes, const float* scales,
                      DeviceStream stream) = 0;
  // "13.0.2" of the library found.
  virtual std::string Version() const = 0;
};

}  // namespace rempart::kernels::cuda
