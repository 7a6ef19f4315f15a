// SPDX-License-Identifier: Apache-2.0
// Formulas as in ggml's ggml-quants.c, which defines the GGUF block formats.
#include "kernels/reference/dequantize.h"

#include "kernels/blocks.h"

namespace rempart::kernels {
namespace {

int FifthBit(const uint8_t* qh, int element) {
  return ((qh[element / 8] >> (element % 8)) & 1) << 4;
}

void Block(const BlockQ8_0& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(b.qs[i]) * d;
}

void Block(const BlockQ4_0& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int i = 0; i < 16; ++i) {
    y[i] = static_cast<float>((b.qs[i] & 15) - 8) * d;
    y[i + 16] = static_cast<float>((b.qs[i] >> 4) - 8) * d;
  }
}

void Block(const BlockQ4_1& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float m = HalfToFloat(b.m);
  for (int i = 0; i < 16; ++i) {
    y[i] = static_cast<float>(b.qs[i] & 15) * d + m;
    y[i + 16] = static_cast<float>(b.qs[i] >> 4) * d + m;
  }
}

void Block(const BlockQ5_0& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int i = 0; i < 16; ++i) {
    y[i] = static_cast<float>(((b.qs[i] & 15) | FifthBit(b.qh, i)) - 16) * d;
    y[i + 16] = static_cast<float>(((b.qs[i] >> 4) | FifthBit(b.qh, i + 16)) - 16) * d;
  }
}

void Block(const BlockQ5_1& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float m = HalfToFloat(b.m);
  for (int i = 0; i < 16; ++i) {
    y[i] = static_cast<float>((b.qs[i] & 15) | FifthBit(b.qh, i)) * d + m;
    y[i + 16] = static_cast<float>((b.qs[i] >> 4) | FifthBit(b.qh, i + 16)) * d + m;
  }
}

// Group g of 32 elements lies in the low (g even) or high (g odd) nibbles of bytes 32*(g/2)...
void Block(const BlockQ4_K& b, float* y) {
  for (int g = 0; g < 8; ++g) {
    uint8_t scale, min;
    KScaleMin(b.scales, g, &scale, &min);
    const float d = HalfToFloat(b.d) * static_cast<float>(scale);
    const float m = HalfToFloat(b.dmin) * static_cast<float>(min);
    for (int i = 0; i < 32; ++i) {
      const int q = (b.qs[32 * (g / 2) + i] >> (4 * (g % 2))) & 15;
      y[32 * g + i] = d * static_cast<float>(q) - m;
    }
  }
}

void Block(const BlockQ5_K& b, float* y) {
  for (int g = 0; g < 8; ++g) {
    uint8_t scale, min;
    KScaleMin(b.scales, g, &scale, &min);
    const float d = HalfToFloat(b.d) * static_cast<float>(scale);
    const float m = HalfToFloat(b.dmin) * static_cast<float>(min);
    for (int i = 0; i < 32; ++i) {
      const int low = (b.qs[32 * (g / 2) + i] >> (4 * (g % 2))) & 15;
      const int high = ((b.qh[i] >> g) & 1) << 4;
      y[32 * g + i] = d * static_cast<float>(low | high) - m;
    }
  }
}

// Each half of 128 elements: four groups of 32 share 64 bytes of nibbles and 32 bytes of bit pairs.
void Block(const BlockQ6_K& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128;
    const int group = (i / 32) % 4;
    const int lane = i % 32;
    const int low = (b.ql[64 * half + 32 * (group % 2) + lane] >> (4 * (group / 2))) & 15;
    const int high = (b.qh[32 * half + lane] >> (2 * group)) & 3;
    const int scale = b.scales[i / 16];
    y[i] = d * static_cast<float>(scale) * static_cast<float>((low | (high << 4)) - 32);
  }
}

// Element i lies in bit pair (i / 32) % 4 of byte 32 * (i / 128) + i % 32.
int BitPair(const uint8_t* qs, int i) {
  return (qs[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3;
}

void Block(const BlockQ2_K& b, float* y) {
  for (int i = 0; i < 256; ++i) {
    const float d = HalfToFloat(b.d) * static_cast<float>(b.scales[i / 16] & 15);
    const float m = HalfToFloat(b.dmin) * static_cast<float>(b.scales[i / 16] >> 4);
    y[i] = d * static_cast<float>(BitPair(b.qs, i)) - m;
  }
}

void Block(const BlockQ3_K& b, float* y) {
  for (int i = 0; i < 256; ++i) {
    const float d = HalfToFloat(b.d) * static_cast<float>(Q3KScale(b.scales, i / 16));
    const int high = (b.hmask[i % 32] >> (i / 32)) & 1;
    y[i] = d * static_cast<float>((BitPair(b.qs, i) | (high << 2)) - 4);
  }
}

void Block(const BlockIQ4_NL& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(kIq4Values[b.qs[i] & 15]);
    y[i + 16] = d * static_cast<float>(kIq4Values[b.qs[i] >> 4]);
  }
}

void Block(const BlockIQ4_XS& b, float* y) {
  for (int g = 0; g < 8; ++g) {
    const float d = HalfToFloat(b.d) * static_cast<float>(IQ4XSScale(b, g));
    for (int i = 0; i < 16; ++i) {
      y[32 * g + i] = d * static_cast<float>(kIq4Values[b.qs[16 * g + i] & 15]);
      y[32 * g + i + 16] = d * static_cast<float>(kIq4Values[b.qs[16 * g + i] >> 4]);
    }
  }
}

void Block(const BlockMXFP4& b, float* y) {
  const float d = HalfOfE8M0(b.e);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(kMxfp4Values[b.qs[i] & 15]);
    y[i + 16] = d * static_cast<float>(kMxfp4Values[b.qs[i] >> 4]);
  }
}

template <class B>
void Blocks(const void* row, int64_t cols, float* out) {
  const B* blocks = static_cast<const B*>(row);
  for (int64_t i = 0; i < cols / B::kElements; ++i) Block(blocks[i], out + i * B::kElements);
}

}  // namespace

void DequantizeRow(DType type, const void* row, int64_t cols, float* out) {
  const auto* u16 = static_cast<const uint16_t*>(row);
  switch (type) {
    case DType::kF32:
      std::memcpy(out, row, static_cast<size_t>(cols) * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = HalfToFloat(u16[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = BFloat16ToFloat(u16[i]);
      return;
    case DType::kQ8_0:
      return Blocks<BlockQ8_0>(row, cols, out);
    case DType::kQ4_0:
      return Blocks<BlockQ4_0>(row, cols, out);
    case DType::kQ4_1:
      return Blocks<BlockQ4_1>(row, cols, out);
    case DType::kQ5_0:
      return Blocks<BlockQ5_0>(row, cols, out);
    case DType::kQ5_1:
      return Blocks<BlockQ5_1>(row, cols, out);
    case DType::kQ4_K:
      return Blocks<BlockQ4_K>(row, cols, out);
    case DType::kQ5_K:
      return Blocks<BlockQ5_K>(row, cols, out);
    case DType::kQ6_K:
      return Blocks<BlockQ6_K>(row, cols, out);
    case DType::kQ2_K:
      return Blocks<BlockQ2_K>(row, cols, out);
    case DType::kQ3_K:
      return Blocks<BlockQ3_K>(row, cols, out);
    case DType::kIQ4_NL:
      return Blocks<BlockIQ4_NL>(row, cols, out);
    case DType::kIQ4_XS:
      return Blocks<BlockIQ4_XS>(row, cols, out);
    case DType::kMXFP4:
      return Blocks<BlockMXFP4>(row, cols, out);
  }
}

}  // namespace rempart::kernels
