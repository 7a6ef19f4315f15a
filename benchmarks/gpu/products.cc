// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/products.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/inputs.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

using kernels::DeviceFormat;
using worker::DeviceBuffer;

struct NamedFormat {
  const char* name;
  DeviceFormat format;
};
constexpr NamedFormat kFormats[] = {{"bf16", DeviceFormat::kBF16},
                                    {"fp8_rows", DeviceFormat::kFP8Row},
                                    {"fp8_blocks", DeviceFormat::kFP8Block},
                                    {"int8", DeviceFormat::kINT8Row}};

// Of which every two bytes are a BF16 between 2^-8 and 2^-7, and every one an int8 and an E4M3,
// none of them NaN.
std::vector<uint16_t> SeededNumbers(int64_t count) {
  std::vector<uint16_t> numbers(static_cast<size_t>(count));
  uint32_t state = 1;
  for (uint16_t& number : numbers) {
    state = state * 1664525 + 1013904223;
    number = static_cast<uint16_t>(0x3b80 + (state >> 24) % 127);
  }
  return numbers;
}

absl::StatusOr<DeviceBuffer> Upload(worker::Device& device, const void* from, int64_t bytes) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Make(device, bytes));
  device.CopyIn(buffer.as<void>(), from, bytes);
  RETURN_IF_ERROR(device.Finish());
  return buffer;
}

// Memory for the largest of the products.
struct Operands {
  DeviceBuffer w, scales, x, y;
};
absl::StatusOr<Operands> MakeOperands(worker::Device& device, const ProductSizes& sizes) {
  const int64_t tokens = *std::max_element(sizes.tokens.begin(), sizes.tokens.end());
  int64_t elements = 0, scales = 0, rows = 0, cols = 0;
  for (const ProductShape& shape : sizes.shapes) {
    elements = std::max(elements, shape.rows * shape.cols);
    const int64_t blocks = (shape.rows + kernels::kScaleBlock - 1) / kernels::kScaleBlock;
    scales = std::max({scales, shape.rows, blocks * kernels::BlockScaleStride(shape.cols)});
    rows = std::max(rows, shape.rows);
    cols = std::max(cols, shape.cols);
  }
  const std::vector<uint16_t> numbers = SeededNumbers(std::max(elements, tokens * cols));
  const std::vector<float> ones(static_cast<size_t>(scales), 1.0f);
  Operands made;
  ASSIGN_OR_RETURN(made.w, Upload(device, numbers.data(), elements * 2));
  ASSIGN_OR_RETURN(made.x, Upload(device, numbers.data(), tokens * cols * 2));
  ASSIGN_OR_RETURN(made.scales, Upload(device, ones.data(), scales * 4));
  ASSIGN_OR_RETURN(made.y, DeviceBuffer::Make(device, tokens * rows * 2));
  return made;
}

}  // namespace

absl::StatusOr<PartResult> MeasureProducts(worker::Device& device, const ProductSizes& sizes) {
  ASSIGN_OR_RETURN(const Operands operands, MakeOperands(device, sizes));
  PartResult result;
  result.notes.push_back(device.Describe());
  for (const ProductShape& shape : sizes.shapes) {
    for (const int64_t tokens : sizes.tokens) {
      for (const auto& [name, format] : kFormats) {
        kernels::DeviceMatmulArgs args;
        args.w.data = operands.w.as<void>();
        args.w.format = format;
        args.w.rows = shape.rows;
        args.w.cols = args.x_stride = shape.cols;
        args.w.scales = operands.scales.as<float>();
        args.w.int8_activations = true;
        args.x = operands.x.as<uint16_t>();
        args.y = operands.y.as<void>();
        args.y_stride = shape.rows;
        args.num_tokens = args.y_rows = tokens;
        RETURN_IF_ERROR(device.Matmul(args));  // chooses how
        RETURN_IF_ERROR(device.Finish());
        const absl::Time start = SteadyNow();
        for (int i = 0; i < sizes.repeats; ++i) RETURN_IF_ERROR(device.Matmul(args));
        RETURN_IF_ERROR(device.Finish());
        const double flops = 2.0 * static_cast<double>(shape.rows * shape.cols * tokens) *
                             sizes.repeats / SecondsSince(start);
        result.figures.push_back(
            {absl::StrCat(shape.name, "_", tokens, "_", name), flops / 1e12, "TFLOP/s"});
      }
    }
  }
  return result;
}

}  // namespace rempart::benchmarks
