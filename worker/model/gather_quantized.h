// SPDX-License-Identifier: Apache-2.0
// Makes quantised matrices of the tensors that a folder stores them in. Files come from outside:
// every part's type and shape, and every index, is checked here, so that whoever reads a
// QuantizedMatrix need not.
#pragma once

#include "absl/status/status.h"
#include "worker/model/model_config.h"
#include "worker/model/quantization_config.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

// `tensors` have the names of GGUF files, with the folder's suffixes ("blk.0.attn_q.qweight"):
// those of a matrix become one ("blk.0.attn_q.weight"). Scales of activations are checked and left
// out: activations are quantised by their own largest value, or not at all. InvalidArgument names a
// part that is missing, misshapen or wrong; Unimplemented one that is not served.
absl::Status GatherQuantized(const QuantizationConfig& config, TensorMap& tensors);

// AutoGPTQ stores biases of zero where the model has none: leaves those out.
void DropZeroBiases(const ModelConfig& config, TensorMap& tensors);

// InvalidArgument when a tensor is a part of a quantised matrix, which no configuration told of.
absl::Status CheckAllPlain(const TensorMap& tensors);

}  // namespace rempart::worker
