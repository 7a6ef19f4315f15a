// SPDX-License-Identifier: Apache-2.0
#include "worker/model/device_quantized.h"

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

// Of rows of a matrix whose scales are those of blocks: from the first of a block on, or in one.
bool CutsNoBlock(int64_t row, int64_t rows) {
  return row % kFP8Block == 0 || row % kFP8Block + rows <= kFP8Block;
}

}  // namespace

kernels::DeviceFormat FormatOnDevice(const QuantizedMatrix& matrix) {
  switch (matrix.scheme) {
    case QuantizedScheme::kFP8Rows:
      return kernels::DeviceFormat::kFP8Row;
    case QuantizedScheme::kFP8Blocks:
      return kernels::DeviceFormat::kFP8Block;
    case QuantizedScheme::kINT8Rows:
      return kernels::DeviceFormat::kINT8Row;
    case QuantizedScheme::kINT4Groups:
      break;
  }
  return matrix.group_of_columns.empty() ? kernels::DeviceFormat::kINT4Group
                                         : kernels::DeviceFormat::kBF16;
}

std::vector<QuantizedWindow> WindowsOf(absl::Span<const Matrix* const> parts) {
  std::vector<QuantizedWindow> windows;
  const QuantizedMatrix* last = nullptr;
  for (const Matrix* part : parts) {
    const bool continues = part->quantized.get() == last &&
                           windows.back().row + windows.back().rows == part->first_row;
    if (continues) {
      windows.back().rows += part->view.rows;
      continue;
    }
    last = part->quantized.get();
    windows.push_back({*last, part->first_row, part->view.rows, part->first_col, part->view.cols});
  }
  return windows;
}

void AppendScales(const QuantizedWindow& window, std::vector<float>& scales) {
  const std::vector<float>& all = window.matrix.scales;
  if (window.matrix.scheme != QuantizedScheme::kFP8Blocks) {
    scales.insert(scales.end(), all.begin() + window.row, all.begin() + window.row + window.rows);
    return;
  }
  const auto blocks = [](int64_t count) { return (count + kFP8Block - 1) / kFP8Block; };
  const int64_t stride = blocks(window.matrix.cols);
  for (int64_t block = 0; block < blocks(window.rows); ++block) {
    const auto row = all.begin() + (window.row / kFP8Block + block) * stride;
    const auto first = row + window.col / kFP8Block;
    scales.insert(scales.end(), first, first + blocks(window.cols));
    scales.resize(scales.size() + kernels::BlockScaleStride(window.cols) - blocks(window.cols));
  }
}

bool CanStack(const Matrix& a, const Matrix& b) {
  if (a.quantized == nullptr || b.quantized == nullptr || a.view.cols != b.view.cols) return false;
  const QuantizedMatrix& x = *a.quantized;
  const QuantizedMatrix& y = *b.quantized;
  if (x.scheme != y.scheme || x.group != y.group ||
      x.group_of_columns.empty() != y.group_of_columns.empty()) {
    return false;
  }
  if (x.scheme != QuantizedScheme::kFP8Blocks) return true;
  // Rows of the device's matrix are counted from its first, so blocks have to begin where 128 do.
  if (&x == &y && a.first_row + a.view.rows == b.first_row) return true;
  return a.first_row % kFP8Block == 0 && a.view.rows % kFP8Block == 0 &&
         CutsNoBlock(b.first_row, b.view.rows);
}

absl::Status CheckWindow(const QuantizedWindow& window) {
  const QuantizedMatrix& matrix = window.matrix;
  const bool is_int4 = matrix.scheme == QuantizedScheme::kINT4Groups;
  // FP8 and INT8 rows are read 16 bytes at a time.
  const int64_t unit = is_int4 ? 8 : 16;
  if (window.cols % unit != 0 || window.cols > kMaxQuantizedCols) {
    return absl::UnimplementedError(
        absl::StrCat(matrix.name, " has ", window.cols, " columns: a GPU needs a multiple of ",
                     unit, ", at most ", kMaxQuantizedCols, "; use spec.device cpu"));
  }
  if (matrix.scheme == QuantizedScheme::kFP8Blocks && !CutsNoBlock(window.row, window.rows)) {
    return absl::FailedPreconditionError(
        absl::StrCat(matrix.name, ": its weights come in blocks of ", kFP8Block,
                     " rows, and ranks on GPUs would cut them at row ", window.row,
                     ": set parallelism.tensor to fewer ranks, or take a file of another format"));
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
