// SPDX-License-Identifier: Apache-2.0
// A named tensor inside a mapped file, as both file formats present it after validation: the bytes
// lie inside the file and are exactly what type and shape need.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "kernels/ops.h"

namespace rempart::worker {

struct QuantizedMatrix;

// What the bytes of a tensor are.
enum class TensorElements : uint8_t {
  kNumbers,  // numbers, or blocks of numbers, of TensorView::type
  // Parts of the quantised matrices of model folders: GatherQuantized makes matrices of them, and
  // nobody else reads them.
  kFP8,  // E4M3
  kINT8,
  kINT32,
  kINT64,
};

struct TensorView {
  std::string name;  // as the file has it
  kernels::DType type = kernels::DType::kF32;
  std::vector<int64_t> shape;  // outermost first
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
  TensorElements elements = TensorElements::kNumbers;
  // Of a matrix that several tensors of a folder make up (worker/model/quantized_matrix.h): then
  // `data` is null, `type` is what a CPU expands it to, and `bytes` are those of all parts.
  std::shared_ptr<const QuantizedMatrix> quantized = nullptr;

  bool is_plain() const { return elements == TensorElements::kNumbers && quantized == nullptr; }
  int64_t rows() const { return shape.size() < 2 ? 1 : shape[0]; }
  int64_t cols() const { return shape.empty() ? 0 : shape.back(); }
  std::string ShapeText() const { return "[" + absl::StrJoin(shape, ", ") + "]"; }
};

using TensorMap = absl::flat_hash_map<std::string, TensorView>;

}  // namespace rempart::worker
