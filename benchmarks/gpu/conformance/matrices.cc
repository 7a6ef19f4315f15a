// SPDX-License-Identifier: Apache-2.0
// Weight matrices in every storage format, with the values that their bytes mean by the formulas of
// kernels/device_ops.h and kernels/reference.
#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/blocks.h"
#include "kernels/reference/dequantize.h"

namespace rempart::benchmarks {
namespace {

using kernels::DeviceFormat;
using kernels::DType;

constexpr int64_t kGroup = 32;  // of kINT4Group

// Offsets of the F16 scales in a block.
std::vector<int64_t> HalfOffsets(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ6_K:
      return {static_cast<int64_t>(offsetof(kernels::BlockQ6_K, d))};
    case DType::kQ2_K:
      return {static_cast<int64_t>(offsetof(kernels::BlockQ2_K, d)),
              static_cast<int64_t>(offsetof(kernels::BlockQ2_K, dmin))};
    case DType::kQ3_K:
      return {static_cast<int64_t>(offsetof(kernels::BlockQ3_K, d))};
    case DType::kMXFP4:
      return {};
    default:
      return {0};
  }
}

std::vector<uint8_t> GgufBytes(std::mt19937& random, DType type, int64_t rows, int64_t cols) {
  std::vector<uint8_t> bytes(kernels::RowBytes(type, cols) * rows);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (int64_t at = 0; at < static_cast<int64_t>(bytes.size()); at += kernels::BlockBytes(type)) {
    for (const int64_t offset : HalfOffsets(type)) {
      const uint16_t half = kernels::FloatToHalf(normal(random));
      std::memcpy(bytes.data() + at + offset, &half, 2);
    }
    // An exponent: 2^-9 to 2^-2.
    if (type == DType::kMXFP4) bytes[at] = static_cast<uint8_t>(118 + bytes[at] % 8);
  }
  return bytes;
}

float CodeValue(DeviceFormat format, uint8_t code) {
  if (format == DeviceFormat::kINT8Row) return static_cast<int8_t>(code);
  return kernels::cuda::ToFloat(kernels::cuda::Fp8{code});
}

// Formats of one byte an element, with F32 scales by rows or by blocks of 128 x 128.
absl::Status FillCodes(Trial& trial, TestMatrix& m) {
  kernels::DeviceMatrix& w = m.matrix;
  const bool is_block = w.format == DeviceFormat::kFP8Block;
  const int64_t stride = kernels::BlockScaleStride(w.cols);
  std::vector<float> scales =
      RandomFloats(trial.random, is_block ? (w.rows + 127) / 128 * stride : w.rows, 0.01f);
  for (int64_t i = 0; is_block && i < static_cast<int64_t>(scales.size()); ++i) {
    if (i % stride * kernels::kScaleBlock >= w.cols) scales[i] = 0;
  }
  std::vector<uint8_t> codes(w.rows * w.cols);
  m.values.resize(codes.size());
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t c = 0; c < w.cols; ++c) {
      uint8_t code = static_cast<uint8_t>(trial.random());
      // E4M3's NaN is no weight.
      if (w.format != DeviceFormat::kINT8Row && (code & 0x7f) == 0x7f) code ^= 1;
      codes[r * w.cols + c] = code;
      const float scale = is_block ? scales[r / 128 * stride + c / 128] : scales[r];
      m.values[r * w.cols + c] = scale * CodeValue(w.format, code);
    }
  }
  ASSIGN_OR_RETURN(m.data, DeviceArray<uint8_t>::From(trial.device, codes));
  ASSIGN_OR_RETURN(m.scales, DeviceArray<float>::From(trial.device, scales));
  w.scales = m.scales.data();
  return absl::OkStatus();
}

absl::Status FillInt4(Trial& trial, TestMatrix& m) {
  kernels::DeviceMatrix& w = m.matrix;
  w.group = kGroup;
  const int64_t groups = w.rows * (w.cols / kGroup);
  const std::vector<float> scales = RandomFloats(trial.random, groups, 0.02f);
  std::vector<uint16_t> halves;
  for (const float scale : scales) halves.push_back(kernels::FloatToHalf(scale));
  std::vector<uint8_t> zeros(groups), codes(w.rows * w.cols / 2);
  for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(trial.random() & 15);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(trial.random());
  m.values.resize(w.rows * w.cols);
  for (int64_t i = 0; i < w.rows * w.cols; ++i) {
    const int code = codes[i / 2] >> (i % 2 * 4) & 15;
    m.values[i] =
        kernels::HalfToFloat(halves[i / kGroup]) * static_cast<float>(code - zeros[i / kGroup]);
  }
  ASSIGN_OR_RETURN(m.data, DeviceArray<uint8_t>::From(trial.device, codes));
  ASSIGN_OR_RETURN(m.group_scales, DeviceArray<uint16_t>::From(trial.device, halves));
  ASSIGN_OR_RETURN(m.group_zeros, DeviceArray<uint8_t>::From(trial.device, zeros));
  w.group_scales = m.group_scales.data();
  w.group_zeros = m.group_zeros.data();
  return absl::OkStatus();
}

absl::Status FillGguf(Trial& trial, TestMatrix& m) {
  kernels::DeviceMatrix& w = m.matrix;
  const std::vector<uint8_t> bytes = GgufBytes(trial.random, w.gguf, w.rows, w.cols);
  m.values.resize(w.rows * w.cols);
  for (int64_t r = 0; r < w.rows; ++r) {
    kernels::DequantizeRow(w.gguf, bytes.data() + r * kernels::RowBytes(w.gguf, w.cols), w.cols,
                           m.values.data() + r * w.cols);
  }
  ASSIGN_OR_RETURN(m.data, DeviceArray<uint8_t>::From(trial.device, bytes));
  return absl::OkStatus();
}

absl::Status FillBf16(Trial& trial, TestMatrix& m) {
  m.values = RandomFloats(trial.random, m.matrix.rows * m.matrix.cols, 0.05f);
  const std::vector<uint16_t> bits = ToBits(m.values);
  m.values = ToFloats(bits);
  std::vector<uint8_t> bytes(bits.size() * 2);
  std::memcpy(bytes.data(), bits.data(), bytes.size());
  ASSIGN_OR_RETURN(m.data, DeviceArray<uint8_t>::From(trial.device, bytes));
  return absl::OkStatus();
}

}  // namespace

const std::vector<MatrixFormat>& AllMatrixFormats() {
  static const auto* formats = new std::vector<MatrixFormat>{
      {DeviceFormat::kBF16},
      {DeviceFormat::kFP8Row},
      {DeviceFormat::kFP8Block},
      {DeviceFormat::kINT8Row},
      {DeviceFormat::kINT4Group},
      {DeviceFormat::kGguf, DType::kQ8_0},
      {DeviceFormat::kGguf, DType::kQ4_0},
      {DeviceFormat::kGguf, DType::kQ4_1},
      {DeviceFormat::kGguf, DType::kQ5_0},
      {DeviceFormat::kGguf, DType::kQ5_1},
      {DeviceFormat::kGguf, DType::kQ4_K},
      {DeviceFormat::kGguf, DType::kQ5_K},
      {DeviceFormat::kGguf, DType::kQ6_K},
      {DeviceFormat::kGguf, DType::kQ2_K},
      {DeviceFormat::kGguf, DType::kQ3_K},
      {DeviceFormat::kGguf, DType::kIQ4_NL},
      {DeviceFormat::kGguf, DType::kIQ4_XS},
      {DeviceFormat::kGguf, DType::kMXFP4},
  };
  return *formats;
}

std::string FormatName(const MatrixFormat& format) {
  switch (format.format) {
    case DeviceFormat::kBF16:
      return "BF16";
    case DeviceFormat::kFP8Row:
      return "FP8 by rows";
    case DeviceFormat::kFP8Block:
      return "FP8 by blocks";
    case DeviceFormat::kINT8Row:
      return "INT8";
    case DeviceFormat::kINT4Group:
      return "INT4";
    case DeviceFormat::kGguf:
      break;
  }
  return kernels::DTypeName(format.gguf);
}

int64_t FormatColumns(const MatrixFormat& format) {
  if (format.format == DeviceFormat::kGguf) return kernels::BlockElements(format.gguf);
  return format.format == DeviceFormat::kINT4Group ? kGroup : 8;
}

absl::StatusOr<TestMatrix> MakeMatrix(Trial& trial, const MatrixFormat& format, int64_t rows,
                                      int64_t cols) {
  TestMatrix m;
  m.matrix.format = format.format;
  m.matrix.gguf = format.gguf;
  m.matrix.rows = rows;
  m.matrix.cols = cols;
  switch (format.format) {
    case DeviceFormat::kBF16:
      RETURN_IF_ERROR(FillBf16(trial, m));
      break;
    case DeviceFormat::kGguf:
      RETURN_IF_ERROR(FillGguf(trial, m));
      break;
    case DeviceFormat::kINT4Group:
      RETURN_IF_ERROR(FillInt4(trial, m));
      break;
    default:
      RETURN_IF_ERROR(FillCodes(trial, m));
      break;
  }
  m.matrix.data = m.data.data();
  return m;
}

}  // namespace rempart::benchmarks
