// SPDX-License-Identifier: Apache-2.0
// A weight matrix as the quantised folders of Hugging Face store it, in several tensors, and what
// devices make of it: a GPU keeps the codes (kernels::DeviceFormat), a CPU expands them into blocks
// that its kernels know, or into BF16 (docs/adr/0036-quantised-folders.md).
//
// Layouts and their sources, all of x W^T with W [rows, cols] = [out, in]:
//   FP8    E4M3 codes [rows, cols]; transformers, integrations/finegrained_fp8.py, and
//          compressed-tensors, "float-quantized".
//   INT8   codes [rows, cols]; compressed-tensors, "int-quantized".
//   AWQ    qweight [cols, rows / 8], zeros [groups, rows / 8], scales [groups, rows]; nibble i of a
//          word is row 8 * word + (0 2 4 6 1 3 5 7)[i]; AutoAWQ, awq/modules/linear/gemm.py.
//   GPTQ   qweight [cols / 8, rows], zeros [groups, rows / 8], scales [groups, rows], nibbles from
//          the lowest; AutoGPTQ, nn_modules/qlinear/qlinear_cuda_old.py. Its stored zeros are one
//          less than they are; those of "gptq_v2" are as they are (GPTQModel, utils/model.py,
//          convert_gptq_v1_to_v2_format).
//   packed weight_packed [rows, cols / 8], zeros [rows / 8, groups], scales [rows, groups], nibbles
//          from the lowest, 8 more than the number; compressed-tensors, "pack-quantized".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace rempart::worker {

enum class QuantizedScheme : uint8_t {
  kFP8Rows,     // code * scales[row]
  kFP8Blocks,   // code * scales[row / 128, col / 128]
  kINT8Rows,    // code * scales[row]
  kINT4Groups,  // (code - zero) * scale of (row, group of the column)
};

enum class INT4Layout : uint8_t { kAwq, kGptq, kPacked };

// Rows and columns of a block of kFP8Blocks.
inline constexpr int64_t kFP8Block = 128;
// Rows of kINT4Groups are read in runs of so many.
inline constexpr int64_t kINT4Rows = 8;

// Views into the file; validated by whoever makes it (GatherQuantized).
struct QuantizedMatrix {
  std::string name;  // of the module, as the folder has it
  QuantizedScheme scheme = QuantizedScheme::kFP8Rows;
  int64_t rows = 0;
  int64_t cols = 0;
  const uint8_t* codes = nullptr;
  std::vector<float> scales;  // of all schemes but kINT4Groups
  // Of kINT8Rows: the model was made to have its activations quantised by rows as well.
  bool int8_activations = false;

  // Of kINT4Groups. rows are a multiple of 8, cols of group, group of 32.
  INT4Layout layout = INT4Layout::kAwq;
  int64_t group = 0;
  const uint8_t* group_scales = nullptr;
  kernels::DType scale_type = kernels::DType::kF16;
  const uint8_t* zeros = nullptr;         // words; null: all are 8
  int zero_offset = 0;                    // of what is stored
  bool is_symmetric = false;              // all zeros are 8
  std::vector<int32_t> group_of_columns;  // where it is not column / group (act-order)
};

// Ranks may cut a matrix at multiples of these: of 4-bit codes, eight rows and a group's columns;
// of scales of blocks, their columns (which rows a GPU needs whole, it says itself).
int64_t RowUnit(const QuantizedMatrix& matrix);
int64_t ColumnUnit(const QuantizedMatrix& matrix);

// What a CPU expands it to: BF16 (FP8), Q8_0 (INT8), Q4_0 (INT4 around 8) or Q5_0 (other INT4),
// which hold the codes as they are; BF16 where columns of one block have several groups.
kernels::DType ExpandedType(const QuantizedMatrix& matrix);

// Rows [row, row + rows) of its columns [col, col + cols). Of kINT4Groups, rows begin and end at
// multiples of 8, columns at multiples of the group unless these are spread over all columns.
struct QuantizedWindow {
  const QuantizedMatrix& matrix;
  int64_t row = 0;
  int64_t rows = 0;
  int64_t col = 0;
  int64_t cols = 0;
};

// As ExpandedType, row by row: kernels::RowBytes(type, cols) * rows bytes.
void Expand(const QuantizedWindow& window, void* out);

// Of kINT4Groups, as kernels::DeviceMatrix has them: codes [rows, cols / 2], low nibble first;
// scales (F16) and zeros [rows, cols / group].
void PackNibbles(const QuantizedWindow& window, uint8_t* out);
void GroupScales(const QuantizedWindow& window, uint16_t* out);
void GroupZeros(const QuantizedWindow& window, uint8_t* out);

}  // namespace rempart::worker
