// SPDX-License-Identifier: Apache-2.0
// Decoding of stored weights: eight consecutive elements of a row, for every format of
// DeviceMatrix. Host and device, so that it is tested on the CPU against kernels/reference.
//
// Block formats are those of kernels/blocks.h. Bytes are read in units that their alignment in a
// row allows: blocks of 210, 110, 34, 22 or 18 bytes are aligned to 2 only, those of 17 to nothing.
#pragma once

#include "kernels/blocks.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/numbers.h"
#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

// Byte i of eight that were loaded as two little-endian words.
struct Bytes8 {
  uint32_t words[2];
  REMPART_HD uint32_t operator[](int i) const { return words[i >> 2] >> (8 * (i & 3)) & 0xff; }
};

// Eight bytes aligned to kAlign.
template <int kAlign>
REMPART_HD Bytes8 LoadBytes8(const uint8_t* from) {
  if constexpr (kAlign >= 4) {
    const auto* words = Wide<uint32_t>(from);
    return {{words[0], words[1]}};
  } else if constexpr (kAlign == 1) {
    Bytes8 bytes = {{0, 0}};
    for (int i = 0; i < 8; ++i)
      bytes.words[i >> 2] |= static_cast<uint32_t>(from[i]) << (8 * (i & 3));
    return bytes;
  } else {
    const auto* halves = Wide<uint16_t>(from);
    return {{halves[0] | static_cast<uint32_t>(halves[1]) << 16,
             halves[2] | static_cast<uint32_t>(halves[3]) << 16}};
  }
}

// Scale and min of group j (0..7) of a Q4_K or Q5_K block.
REMPART_HD void KGroupScale(const uint8_t* scales, int j, float d, float dmin, float* scale,
                            float* min) {
  int s, m;
  if (j < 4) {
    s = scales[j] & 63;
    m = scales[j + 4] & 63;
  } else {
    s = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
    m = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
  }
  *scale = d * static_cast<float>(s);
  *min = dmin * static_cast<float>(m);
}

REMPART_HD uint16_t LoadU16(const void* from) { return *static_cast<const uint16_t*>(from); }

// Each reads elements [col, col + 8) of the row at `row`; col is a multiple of 8.
REMPART_HD void DecodeQ8_0(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 32 * 34;
  const float d = HalfBitsToFloat(LoadU16(block));
  const Bytes8 codes = LoadBytes8<2>(block + 2 + col % 32);
  for (int i = 0; i < 8; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(codes[i]));
}

// Q4_0, Q4_1, Q5_0, Q5_1: nibbles of 32 elements, low ones first; kHasMin: a stored minimum instead
// of an implied one; kHasHigh: fifth bits in four bytes before the nibbles.
template <bool kHasMin, bool kHasHigh>
REMPART_HD void DecodeLegacy(const uint8_t* row, int64_t col, float (&out)[8]) {
  constexpr int kHead = kHasMin ? 4 : 2;
  constexpr int kBytes = kHead + (kHasHigh ? 4 : 0) + 16;
  constexpr int kAlign = kBytes % 4 == 0 ? 4 : 2;
  const uint8_t* block = row + col / 32 * kBytes;
  const int first = static_cast<int>(col % 32);
  const float d = HalfBitsToFloat(LoadU16(block));
  const float m = kHasMin ? HalfBitsToFloat(LoadU16(block + 2)) : 0.0f;
  const Bytes8 bytes = LoadBytes8<kAlign>(block + kBytes - 16 + first % 16);
  uint32_t high = 0;
  if constexpr (kHasHigh) {
    high =
        (LoadU16(block + kHead) | static_cast<uint32_t>(LoadU16(block + kHead + 2)) << 16) >> first;
  }
  for (int i = 0; i < 8; ++i) {
    int code = static_cast<int>(bytes[i] >> (first >= 16 ? 4 : 0) & 15);
    if constexpr (kHasHigh) code |= static_cast<int>(high >> i & 1) << 4;
    if constexpr (!kHasMin) code -= kHasHigh ? 16 : 8;
    out[i] = static_cast<float>(code) * d + m;
  }
}

// Q4_K (144 bytes) and Q5_K (176 bytes, fifth bits before the nibbles).
template <bool kHasHigh>
REMPART_HD void DecodeQ45K(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 256 * (kHasHigh ? 176 : 144);
  const int first = static_cast<int>(col % 256);
  const int group = first / 32;
  const int lane = first % 32;
  float scale, min;
  KGroupScale(block + 4, group, HalfBitsToFloat(LoadU16(block)),
              HalfBitsToFloat(LoadU16(block + 2)), &scale, &min);
  const Bytes8 bytes = LoadBytes8<4>(block + (kHasHigh ? 48 : 16) + 32 * (group / 2) + lane);
  Bytes8 high = {{0, 0}};
  if constexpr (kHasHigh) high = LoadBytes8<4>(block + 16 + lane);
  for (int i = 0; i < 8; ++i) {
    uint32_t code = bytes[i] >> (4 * (group & 1)) & 15;
    if constexpr (kHasHigh) code |= (high[i] >> group & 1) << 4;
    out[i] = scale * static_cast<float>(code) - min;
  }
}

REMPART_HD void DecodeQ6_K(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 256 * 210;
  const int first = static_cast<int>(col % 256);
  const int half = first / 128;
  const int group = first / 32 % 4;
  const int lane = first % 32;
  const float d = HalfBitsToFloat(LoadU16(block + 208)) *
                  static_cast<float>(static_cast<int8_t>(block[192 + first / 16]));
  const Bytes8 low = LoadBytes8<2>(block + 64 * half + 32 * (group & 1) + lane);
  const Bytes8 high = LoadBytes8<2>(block + 128 + 32 * half + lane);
  for (int i = 0; i < 8; ++i) {
    const uint32_t code = (low[i] >> (4 * (group >> 1)) & 15) | (high[i] >> (2 * group) & 3) << 4;
    out[i] = d * static_cast<float>(static_cast<int>(code) - 32);
  }
}

REMPART_HD void DecodeQ2_K(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 256 * 84;
  const int first = static_cast<int>(col % 256);
  const uint32_t scales = block[first / 16];
  const float d = HalfBitsToFloat(LoadU16(block + 80)) * static_cast<float>(scales & 15);
  const float m = HalfBitsToFloat(LoadU16(block + 82)) * static_cast<float>(scales >> 4);
  const Bytes8 bytes = LoadBytes8<4>(block + 16 + 32 * (first / 128) + first % 32);
  const int shift = 2 * (first / 32 % 4);
  for (int i = 0; i < 8; ++i) out[i] = d * static_cast<float>(bytes[i] >> shift & 3) - m;
}

REMPART_HD void DecodeQ3_K(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 256 * 110;
  const int first = static_cast<int>(col % 256);
  const uint8_t* scales = block + 96;
  const int group = first / 16;
  const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
  const int high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
  const float d =
      HalfBitsToFloat(LoadU16(block + 108)) * static_cast<float>((low | high << 4) - 32);
  const Bytes8 thirds = LoadBytes8<2>(block + first % 32);
  const Bytes8 bytes = LoadBytes8<2>(block + 32 + 32 * (first / 128) + first % 32);
  const int shift = 2 * (first / 32 % 4);
  for (int i = 0; i < 8; ++i) {
    const uint32_t code = (bytes[i] >> shift & 3) | (thirds[i] >> (first / 32) & 1) << 2;
    out[i] = d * static_cast<float>(static_cast<int>(code) - 4);
  }
}

// Sixteen signed bytes as two words, for a table that is looked up in registers.
constexpr uint64_t PackCodes(const int8_t* codes) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i)
    word |= static_cast<uint64_t>(static_cast<uint8_t>(codes[i])) << (8 * i);
  return word;
}
inline constexpr uint64_t kIq4Low = PackCodes(kIq4Values), kIq4High = PackCodes(kIq4Values + 8);
inline constexpr uint64_t kMxfp4Low = PackCodes(kMxfp4Values),
                          kMxfp4High = PackCodes(kMxfp4Values + 8);
template <uint64_t kLow, uint64_t kHigh>
REMPART_HD float CodeOf(uint32_t nibble) {
  const uint64_t word = nibble < 8 ? kLow : kHigh;
  return static_cast<float>(static_cast<int8_t>(word >> (8 * (nibble & 7)) & 0xff));
}

// 32 nibbles of a table, low ones first, from 16 bytes; `first` is a multiple of 8.
template <uint64_t kLow, uint64_t kHigh, int kAlign>
REMPART_HD void DecodeTable(const uint8_t* nibbles, int first, float d, float (&out)[8]) {
  const Bytes8 bytes = LoadBytes8<kAlign>(nibbles + first % 16);
  for (int i = 0; i < 8; ++i)
    out[i] = d * CodeOf<kLow, kHigh>(bytes[i] >> (first >= 16 ? 4 : 0) & 15);
}

REMPART_HD void DecodeIQ4_NL(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 32 * 18;
  DecodeTable<kIq4Low, kIq4High, 2>(block + 2, static_cast<int>(col % 32),
                                    HalfBitsToFloat(LoadU16(block)), out);
}

REMPART_HD void DecodeIQ4_XS(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 256 * 136;
  const int first = static_cast<int>(col % 256);
  const int group = first / 32;
  const int low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
  const int high = LoadU16(block + 2) >> (2 * group) & 3;
  const float d = HalfBitsToFloat(LoadU16(block)) * static_cast<float>((low | high << 4) - 32);
  DecodeTable<kIq4Low, kIq4High, 4>(block + 8 + 16 * group, first % 32, d, out);
}

REMPART_HD void DecodeMXFP4(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint8_t* block = row + col / 32 * 17;
  const uint32_t e = block[0];
  DecodeTable<kMxfp4Low, kMxfp4High, 1>(block + 1, static_cast<int>(col % 32),
                                        BitsFloat(e < 2 ? 0x00200000u << e : (e - 1) << 23), out);
}

REMPART_HD void DecodeBf16(const uint8_t* row, int64_t col, float (&out)[8]) {
  const uint4 raw = *Wide<uint4>(row + col * 2);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = LowFloat(words[i]);
    out[2 * i + 1] = HighFloat(words[i]);
  }
}

REMPART_HD void DecodeFp8(const uint8_t* row, int64_t col, float scale, float (&out)[8]) {
  const Bytes8 codes = LoadBytes8<4>(row + col);
  for (int i = 0; i < 8; ++i) out[i] = scale * ToFloat(Fp8{static_cast<uint8_t>(codes[i])});
}

REMPART_HD void DecodeInt8(const uint8_t* row, int64_t col, float scale, float (&out)[8]) {
  const Bytes8 codes = LoadBytes8<4>(row + col);
  for (int i = 0; i < 8; ++i) out[i] = scale * static_cast<float>(static_cast<int8_t>(codes[i]));
}

REMPART_HD void DecodeInt4(const uint8_t* row, int64_t col, float scale, float zero,
                           float (&out)[8]) {
  const uint32_t codes = *Wide<uint32_t>(row + col / 2);
  for (int i = 0; i < 8; ++i) {
    out[i] = scale * (static_cast<float>(codes >> (4 * i) & 15) - zero);
  }
}

// Weights as kernels see them: one type for each format, so that a kernel is compiled for each.
// Decode(matrix, row, col, out) gives elements [col, col + 8) of a row.
template <DeviceFormat kFormat, DType kGgufType = DType::kF32>
struct Decoder {
  static constexpr bool kIsBf16 = kFormat == DeviceFormat::kBF16;

  REMPART_HD static int64_t RowBytesOf(int64_t cols) {
    if constexpr (kFormat == DeviceFormat::kBF16) return cols * 2;
    if constexpr (kFormat == DeviceFormat::kINT4Group) return cols / 2;
    if constexpr (kFormat == DeviceFormat::kGguf) {
      if constexpr (kGgufType == DType::kQ8_0) return cols / 32 * 34;
      if constexpr (kGgufType == DType::kQ4_0) return cols / 32 * 18;
      if constexpr (kGgufType == DType::kQ4_1) return cols / 32 * 20;
      if constexpr (kGgufType == DType::kQ5_0) return cols / 32 * 22;
      if constexpr (kGgufType == DType::kQ5_1) return cols / 32 * 24;
      if constexpr (kGgufType == DType::kQ4_K) return cols / 256 * 144;
      if constexpr (kGgufType == DType::kQ5_K) return cols / 256 * 176;
      if constexpr (kGgufType == DType::kQ6_K) return cols / 256 * 210;
      if constexpr (kGgufType == DType::kQ2_K) return cols / 256 * 84;
      if constexpr (kGgufType == DType::kQ3_K) return cols / 256 * 110;
      if constexpr (kGgufType == DType::kIQ4_NL) return cols / 32 * 18;
      if constexpr (kGgufType == DType::kIQ4_XS) return cols / 256 * 136;
      if constexpr (kGgufType == DType::kMXFP4) return cols / 32 * 17;
    }
    return cols;
  }

  REMPART_HD static void Decode(const DeviceMatrix& w, int64_t r, int64_t c, float (&out)[8]) {
    const uint8_t* row = static_cast<const uint8_t*>(w.data) + r * RowBytesOf(w.cols);
    if constexpr (kFormat == DeviceFormat::kBF16) {
      DecodeBf16(row, c, out);
    } else if constexpr (kFormat == DeviceFormat::kFP8Row) {
      DecodeFp8(row, c, w.scales[r], out);
    } else if constexpr (kFormat == DeviceFormat::kFP8Block) {
      DecodeFp8(row, c, w.scales[BlockScaleAt(r, c, w.cols)], out);
    } else if constexpr (kFormat == DeviceFormat::kINT8Row) {
      DecodeInt8(row, c, w.scales[r], out);
    } else if constexpr (kFormat == DeviceFormat::kINT4Group) {
      const int64_t at = r * (w.cols / w.group) + c / w.group;
      DecodeInt4(row, c, HalfBitsToFloat(w.group_scales[at]), static_cast<float>(w.group_zeros[at]),
                 out);
    } else if constexpr (kGgufType == DType::kQ8_0) {
      DecodeQ8_0(row, c, out);
    } else if constexpr (kGgufType == DType::kQ4_0) {
      DecodeLegacy<false, false>(row, c, out);
    } else if constexpr (kGgufType == DType::kQ4_1) {
      DecodeLegacy<true, false>(row, c, out);
    } else if constexpr (kGgufType == DType::kQ5_0) {
      DecodeLegacy<false, true>(row, c, out);
    } else if constexpr (kGgufType == DType::kQ5_1) {
      DecodeLegacy<true, true>(row, c, out);
    } else if constexpr (kGgufType == DType::kQ4_K) {
      DecodeQ45K<false>(row, c, out);
    } else if constexpr (kGgufType == DType::kQ5_K) {
      DecodeQ45K<true>(row, c, out);
    } else if constexpr (kGgufType == DType::kQ6_K) {
      DecodeQ6_K(row, c, out);
    } else if constexpr (kGgufType == DType::kQ2_K) {
      DecodeQ2_K(row, c, out);
    } else if constexpr (kGgufType == DType::kQ3_K) {
      DecodeQ3_K(row, c, out);
    } else if constexpr (kGgufType == DType::kIQ4_NL) {
      DecodeIQ4_NL(row, c, out);
    } else if constexpr (kGgufType == DType::kIQ4_XS) {
      DecodeIQ4_XS(row, c, out);
    } else {
      static_assert(kGgufType == DType::kMXFP4);
      DecodeMXFP4(row, c, out);
    }
  }
};

// Calls body with the Decoder of this matrix. Host only. The types F32, F16 and BF16 of GGUF files
// are stored as kBF16, never as kGguf.
template <class Body>
void WithDecoder(const DeviceMatrix& w, Body body) {
  switch (w.format) {
    case DeviceFormat::kBF16:
      return body(Decoder<DeviceFormat::kBF16>{});
    case DeviceFormat::kFP8Row:
      return body(Decoder<DeviceFormat::kFP8Row>{});
    case DeviceFormat::kFP8Block:
      return body(Decoder<DeviceFormat::kFP8Block>{});
    case DeviceFormat::kINT8Row:
      return body(Decoder<DeviceFormat::kINT8Row>{});
    case DeviceFormat::kINT4Group:
      return body(Decoder<DeviceFormat::kINT4Group>{});
    case DeviceFormat::kGguf:
      break;
  }
  switch (w.gguf) {
    case DType::kQ8_0:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ8_0>{});
    case DType::kQ4_0:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ4_0>{});
    case DType::kQ4_1:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ4_1>{});
    case DType::kQ5_0:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ5_0>{});
    case DType::kQ5_1:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ5_1>{});
    case DType::kQ4_K:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ4_K>{});
    case DType::kQ5_K:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ5_K>{});
    case DType::kQ6_K:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ6_K>{});
    case DType::kQ2_K:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ2_K>{});
    case DType::kQ3_K:
      return body(Decoder<DeviceFormat::kGguf, DType::kQ3_K>{});
    case DType::kIQ4_NL:
      return body(Decoder<DeviceFormat::kGguf, DType::kIQ4_NL>{});
    case DType::kIQ4_XS:
      return body(Decoder<DeviceFormat::kGguf, DType::kIQ4_XS>{});
    case DType::kMXFP4:
      return body(Decoder<DeviceFormat::kGguf, DType::kMXFP4>{});
    default:
      break;
  }
}

}  // namespace rempart::kernels::cuda
