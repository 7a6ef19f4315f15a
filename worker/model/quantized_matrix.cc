// SPDX-License-Identifier: Apache-2.0
#include "worker/model/quantized_matrix.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "common/check.h"
#include "kernels/blocks.h"
#include "kernels/cuda/numbers.h"

namespace rempart::worker {
namespace {

using kernels::BlockQ4_0;
using kernels::BlockQ5_0;
using kernels::BlockQ8_0;
using kernels::DType;

constexpr int64_t kBlock = 32;  // columns of Q4_0, Q5_0 and Q8_0
// Columns that are unpacked together, so that what AWQ puts side by side is read once.
constexpr int64_t kColumnsAtOnce = 256;

using Codes = std::array<std::array<uint8_t, kColumnsAtOnce>, kINT4Rows>;

uint32_t Word(const void* from, int64_t index) {
  uint32_t word;
  std::memcpy(&word, static_cast<const uint8_t*>(from) + 4 * index, 4);
  return word;
}

int Nibble(uint32_t word, int64_t index) { return static_cast<int>(word >> (4 * index) & 15); }

// Where row r of eight is in a word of AWQ: the inverse of 0 2 4 6 1 3 5 7.
constexpr int64_t kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

float Number(const uint8_t* data, DType type, int64_t index) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, data + 4 * index, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + 2 * index, 2);
  return type == DType::kF16 ? kernels::HalfToFloat(bits) : kernels::BFloat16ToFloat(bits);
}

// F16, which is what AutoAWQ and AutoGPTQ write; others are rounded to it.
uint16_t GroupScale(const QuantizedMatrix& m, int64_t row, int64_t group) {
  const int64_t at =
      m.layout == INT4Layout::kPacked ? row * (m.cols / m.group) + group : group * m.rows + row;
  if (m.scale_type != DType::kF16) {
    return kernels::FloatToHalf(Number(m.group_scales, m.scale_type, at));
  }
  uint16_t bits;
  std::memcpy(&bits, m.group_scales + 2 * at, 2);
  return bits;
}

int GroupZero(const QuantizedMatrix& m, int64_t row, int64_t group) {
  if (m.zeros == nullptr) return 8;
  if (m.layout == INT4Layout::kPacked) {
    return Nibble(Word(m.zeros, row / 8 * (m.cols / m.group) + group), row % 8);
  }
  const int64_t at = m.layout == INT4Layout::kAwq ? kAwqNibble[row % 8] : row % 8;
  return Nibble(Word(m.zeros, group * (m.rows / 8) + row / 8), at) + m.zero_offset;
}

// Codes of rows [row, row + 8) in columns [col, col + cols), cols <= kColumnsAtOnce; both begin at
// multiples of 8.
void Unpack(const QuantizedMatrix& m, int64_t row, int64_t col, int64_t cols, Codes& codes) {
  switch (m.layout) {
    case INT4Layout::kAwq:
      for (int64_t c = 0; c < cols; ++c) {
        const uint32_t word = Word(m.codes, (col + c) * (m.rows / 8) + row / 8);
        for (int64_t r = 0; r < 8; ++r) codes[r][c] = Nibble(word, kAwqNibble[r]);
      }
      return;
    case INT4Layout::kGptq:
      for (int64_t c = 0; c < cols; c += 8) {
        for (int64_t r = 0; r < 8; ++r) {
          const uint32_t word = Word(m.codes, (col + c) / 8 * m.rows + row + r);
          for (int64_t i = 0; i < 8; ++i) codes[r][c + i] = Nibble(word, i);
        }
      }
      return;
    case INT4Layout::kPacked:
      for (int64_t r = 0; r < 8; ++r) {
        for (int64_t c = 0; c < cols; c += 8) {
          const uint32_t word = Word(m.codes, (row + r) * (m.cols / 8) + (col + c) / 8);
          for (int64_t i = 0; i < 8; ++i) codes[r][c + i] = Nibble(word, i);
        }
      }
      return;
  }
}

// Calls body(row of the window, column of the window, columns, codes [8, columns]).
template <class Body>
void ForEachTile(const QuantizedWindow& w, Body body) {
  CHECK(w.row % kINT4Rows == 0 && w.rows % kINT4Rows == 0 && w.col % 8 == 0 && w.cols % 8 == 0)
      << w.matrix.name << ": rows " << w.row << " + " << w.rows << ", columns " << w.col << " + "
      << w.cols;
  Codes codes;
  for (int64_t row = 0; row < w.rows; row += kINT4Rows) {
    for (int64_t col = 0; col < w.cols; col += kColumnsAtOnce) {
      const int64_t cols = std::min(kColumnsAtOnce, w.cols - col);
      Unpack(w.matrix, w.row + row, w.col + col, cols, codes);
      body(row, col, cols, codes);
    }
  }
}

// 32 codes of one group.
void PutBlock(const uint8_t* codes, uint16_t scale, int zero, BlockQ4_0& block) {
  CHECK(zero == 8) << "Q4_0 is of matrices whose zeros are 8";
  block.d = scale;
  for (int i = 0; i < 16; ++i) {
    block.qs[i] = static_cast<uint8_t>(codes[i] | codes[i + 16] << 4);
  }
}

// code - zero lies in [-16, 15], and Q5_0 has 16 more.
void PutBlock(const uint8_t* codes, uint16_t scale, int zero, BlockQ5_0& block) {
  block.d = scale;
  uint32_t high = 0;
  int low[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const int code = codes[i] - zero + 16;
    low[i] = code & 15;
    high |= static_cast<uint32_t>(code >> 4) << i;
  }
  std::memcpy(block.qh, &high, 4);
  for (int i = 0; i < 16; ++i) block.qs[i] = static_cast<uint8_t>(low[i] | low[i + 16] << 4);
}

template <class Block>
void ExpandGroups(const QuantizedWindow& w, void* out) {
  const QuantizedMatrix& m = w.matrix;
  auto* const blocks = static_cast<Block*>(out);
  ForEachTile(w, [&](int64_t row, int64_t col, int64_t cols, const Codes& codes) {
    for (int64_t r = 0; r < kINT4Rows; ++r) {
      for (int64_t c = 0; c < cols; c += kBlock) {
        const int64_t group = (w.col + col + c) / m.group;
        const int64_t at = (row + r) * (w.cols / kBlock) + (col + c) / kBlock;
        PutBlock(&codes[r][c], GroupScale(m, w.row + row + r, group),
                 GroupZero(m, w.row + row + r, group), blocks[at]);
      }
    }
  });
}

void ExpandSpreadGroups(const QuantizedWindow& w, uint16_t* out) {
  const QuantizedMatrix& m = w.matrix;
  const int64_t groups = m.cols / m.group;
  std::vector<float> scales(groups), zeros(groups);
  ForEachTile(w, [&](int64_t row, int64_t col, int64_t cols, const Codes& codes) {
    for (int64_t r = 0; r < kINT4Rows; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        scales[g] = kernels::HalfToFloat(GroupScale(m, w.row + row + r, g));
        zeros[g] = static_cast<float>(GroupZero(m, w.row + row + r, g));
      }
      for (int64_t c = 0; c < cols; ++c) {
        const int32_t group = m.group_of_columns[w.col + col + c];
        const float value = (static_cast<float>(codes[r][c]) - zeros[group]) * scales[group];
        out[(row + r) * w.cols + col + c] = kernels::FloatToBFloat16(value);
      }
    }
  });
}

void ExpandFp8(const QuantizedWindow& w, uint16_t* out) {
  static const auto kValues = [] {
    std::array<float, 256> values;
    for (int code = 0; code < 256; ++code) {
      values[code] = kernels::cuda::ToFloat(kernels::cuda::Fp8{static_cast<uint8_t>(code)});
    }
    return values;
  }();
  const QuantizedMatrix& m = w.matrix;
  const bool has_blocks = m.scheme == QuantizedScheme::kFP8Blocks;
  const int64_t blocks = (m.cols + kFP8Block - 1) / kFP8Block;
  for (int64_t row = w.row; row < w.row + w.rows; ++row) {
    const float* scales = has_blocks ? &m.scales[row / kFP8Block * blocks] : &m.scales[row];
    const uint8_t* codes = m.codes + row * m.cols;
    for (int64_t col = w.col; col < w.col + w.cols; ++col) {
      const float scale = has_blocks ? scales[col / kFP8Block] : *scales;
      *out++ = kernels::FloatToBFloat16(kValues[codes[col]] * scale);
    }
  }
}

void ExpandInt8(const QuantizedWindow& w, BlockQ8_0* out) {
  for (int64_t row = w.row; row < w.row + w.rows; ++row) {
    const uint16_t scale = kernels::FloatToHalf(w.matrix.scales[row]);
    const uint8_t* codes = w.matrix.codes + row * w.matrix.cols + w.col;
    for (int64_t col = 0; col < w.cols; col += kBlock, ++out) {
      out->d = scale;
      std::memcpy(out->qs, codes + col, kBlock);
    }
  }
}

}  // namespace

int64_t RowUnit(const QuantizedMatrix& matrix) {
  return matrix.scheme == QuantizedScheme::kINT4Groups ? kINT4Rows : 1;
}

int64_t ColumnUnit(const QuantizedMatrix& matrix) {
  switch (matrix.scheme) {
    case QuantizedScheme::kFP8Rows:
    case QuantizedScheme::kINT8Rows:
      return 1;
    case QuantizedScheme::kFP8Blocks:
      return kFP8Block;
    case QuantizedScheme::kINT4Groups:
      break;
  }
  return matrix.group_of_columns.empty() ? matrix.group : 8;
}

DType ExpandedType(const QuantizedMatrix& matrix) {
  switch (matrix.scheme) {
    case QuantizedScheme::kFP8Rows:
    case QuantizedScheme::kFP8Blocks:
      return DType::kBF16;
    case QuantizedScheme::kINT8Rows:
      return DType::kQ8_0;
    case QuantizedScheme::kINT4Groups:
      break;
  }
  if (!matrix.group_of_columns.empty()) return DType::kBF16;
  return matrix.is_symmetric ? DType::kQ4_0 : DType::kQ5_0;
}

void Expand(const QuantizedWindow& window, void* out) {
  switch (ExpandedType(window.matrix)) {
    case DType::kQ8_0:
      return ExpandInt8(window, static_cast<BlockQ8_0*>(out));
    case DType::kQ4_0:
      return ExpandGroups<BlockQ4_0>(window, out);
    case DType::kQ5_0:
      return ExpandGroups<BlockQ5_0>(window, out);
    default:
      break;
  }
  if (window.matrix.scheme == QuantizedScheme::kINT4Groups) {
    return ExpandSpreadGroups(window, static_cast<uint16_t*>(out));
  }
  ExpandFp8(window, static_cast<uint16_t*>(out));
}

void PackNibbles(const QuantizedWindow& w, uint8_t* out) {
  ForEachTile(w, [&](int64_t row, int64_t col, int64_t cols, const Codes& codes) {
    for (int64_t r = 0; r < kINT4Rows; ++r) {
      uint8_t* to = out + (row + r) * (w.cols / 2) + col / 2;
      for (int64_t c = 0; c < cols; c += 2) {
        *to++ = static_cast<uint8_t>(codes[r][c] | codes[r][c + 1] << 4);
      }
    }
  });
}

void GroupScales(const QuantizedWindow& w, uint16_t* out) {
  for (int64_t row = w.row; row < w.row + w.rows; ++row) {
    for (int64_t col = w.col; col < w.col + w.cols; col += w.matrix.group) {
      *out++ = GroupScale(w.matrix, row, col / w.matrix.group);
    }
  }
}

void GroupZeros(const QuantizedWindow& w, uint8_t* out) {
  for (int64_t row = w.row; row < w.row + w.rows; ++row) {
    for (int64_t col = w.col; col < w.col + w.cols; col += w.matrix.group) {
      *out++ = static_cast<uint8_t>(GroupZero(w.matrix, row, col / w.matrix.group));
    }
  }
}

}  // namespace rempart::worker
