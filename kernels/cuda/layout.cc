// SPDX-License-Identifier: Apache-2.0
// Sizes that kernels/device_ops.h declares.
#include "kernels/cuda/layout.h"

namespace rempart::kernels {

int64_t DeviceMatrixBytes(const DeviceMatrix& matrix) {
  switch (matrix.format) {
    case DeviceFormat::kBF16:
      return matrix.rows * matrix.cols * 2;
    case DeviceFormat::kINT4Group:
      return matrix.rows * (matrix.cols / 2);
    case DeviceFormat::kGguf:
      return matrix.rows * RowBytes(matrix.gguf, matrix.cols);
    case DeviceFormat::kFP8Row:
    case DeviceFormat::kFP8Block:
    case DeviceFormat::kINT8Row:
      break;
  }
  return matrix.rows * matrix.cols;
}

int64_t DeviceKvBlockBytes(bool is_fp8, int64_t kv_heads, int64_t head_dim) {
  return 2 * kv_heads * kKvBlockTokens * head_dim * (is_fp8 ? 1 : 2);
}

int64_t DecodePartialFloats(int64_t num_slices, int64_t num_heads, int64_t head_dim,
                            int64_t max_splits) {
  return cuda::PartialOffset(num_slices, 0, 0, num_heads, head_dim, max_splits);
}

int64_t PeerSlabBytes(int64_t buffer_bytes) { return kPeerFlagBytes + 2 * buffer_bytes; }

}  // namespace rempart::kernels
