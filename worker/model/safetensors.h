// SPDX-License-Identifier: Apache-2.0
// Reads safetensors files (https://github.com/huggingface/safetensors#format): eight bytes with the
// length of a JSON header, the header, the data. Files come from outside: every length, shape and
// offset is checked against the bytes that are there before it is used, and the data must be
// covered by tensors without a gap or an overlap, as the format demands.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

// Tensors of F32, F16 and BF16, and of what quantised matrices are made of (TensorElements), by the
// names in the file; views into `bytes`, which must outlive them. Unimplemented for another type,
// InvalidArgument for a damaged file; `name` begins the message.
absl::StatusOr<TensorMap> ParseSafetensors(absl::string_view name, absl::Span<const uint8_t> bytes);

}  // namespace rempart::worker
