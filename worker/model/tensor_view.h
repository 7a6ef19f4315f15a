// SPDX-License-Identifier: Apache-2.0
// A named tensor inside a mapped file, as both file formats present it after validation: the bytes
// lie inside the file and are exactly what type and shape need.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "kernels/ops.h"

namespace rempart::worker {

struct TensorView {
  std::string name;
  kernels::DType type = kernels::DType::kF32;
  std::vector<int64_t> shape;  // outermost first
  const uint8_t* data = nullptr;
  int64_t bytes = 0;

  int64_t rows() const { return shape.size() < 2 ? 1 : shape[0]; }
  int64_t cols() const { return shape.empty() ? 0 : shape.back(); }
  std::string ShapeText() const { return "[" + absl::StrJoin(shape, ", ") + "]"; }
};

using TensorMap = absl::flat_hash_map<std::string, TensorView>;

}  // namespace rempart::worker
