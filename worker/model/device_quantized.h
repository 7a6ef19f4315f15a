// SPDX-License-Identifier: Apache-2.0
// How quantised matrices lie on a device: which of them one matrix of the device may hold, one
// below the other, and what kernels ask of each. Arithmetic alone; device_weights.cc copies.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/device_ops.h"
#include "worker/model/quantized_matrix.h"
#include "worker/model/weights.h"

namespace rempart::worker {

// Columns of a matrix, at most.
inline constexpr int64_t kMaxQuantizedCols = 1 << 20;

// BF16 where no format has groups whose columns lie apart.
kernels::DeviceFormat FormatOnDevice(const QuantizedMatrix& matrix);

// Whether b can follow a in one matrix of the device.
bool CanStack(const Matrix& a, const Matrix& b);

// One below the other, as they come: parts of one matrix that lie together are one.
std::vector<QuantizedWindow> WindowsOf(absl::Span<const Matrix* const> parts);

// What kernels need of a quantised matrix. Unimplemented and FailedPrecondition name the module and
// what to do; which columns ranks may have, BindWeights has said.
absl::Status CheckWindow(const QuantizedWindow& window);

// F32 scales of a window of FP8 or INT8, as the kernels index them.
void AppendScales(const QuantizedWindow& window, std::vector<float>& scales);

}  // namespace rempart::worker
