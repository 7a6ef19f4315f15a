// SPDX-License-Identifier: Apache-2.0
// What the bytes of each weight type mean: the definition that other code is tested against.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace rempart::kernels {

// F32 values of one row of `cols` elements stored as `type` at `row`.
void DequantizeRow(DType type, const void* row, int64_t cols, float* out);

}  // namespace rempart::kernels
