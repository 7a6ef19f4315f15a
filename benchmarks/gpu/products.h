// SPDX-License-Identifier: Apache-2.0
// A part of benchmarks/gpu/run: dense products alone, in every format that a library of the GPU's
// may multiply, at the shapes of a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/gpu/result.h"
#include "worker/device/device.h"

namespace rempart::benchmarks {

struct ProductShape {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;  // a multiple of kernels::kScaleBlock
};

struct ProductSizes {
  // Of Llama-3.1-8B.
  std::vector<ProductShape> shapes = {
      {"qkv", 6144, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
  std::vector<int64_t> tokens = {64, 256, 2048};
  int repeats = 20;
};

// TFLOP/s of each, the quantisation of activations included, and in a note who multiplies.
absl::StatusOr<PartResult> MeasureProducts(worker::Device& device, const ProductSizes& sizes);

}  // namespace rempart::benchmarks
