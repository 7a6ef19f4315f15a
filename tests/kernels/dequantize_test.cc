// SPDX-License-Identifier: Apache-2.0
// The block formats bit for bit: hand-made blocks with known values.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/blocks.h"
#include "kernels/ops.h"
#include "kernels/reference/dequantize.h"

namespace rempart::kernels {
namespace {

template <class B>
std::vector<float> Values(DType type, const B& block) {
  std::vector<float> out(B::kElements);
  DequantizeRow(type, &block, B::kElements, out.data());
  return out;
}

TEST(Half, RoundTripsEveryValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    if (std::isnan(value)) {
      EXPECT_GT(half & 0x7fff, 0x7c00);
    } else {
      EXPECT_EQ(FloatToHalf(value), half) << bits;
    }
  }
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0xfbff), -65504.0f);
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3c00);
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);
  EXPECT_EQ(FloatToHalf(1.0f + 3 * 0x1p-11f), 0x3c02);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
}

TEST(Dequantize, Q4PutsLowNibblesFirst) {
  BlockQ4_0 q0 = {.d = FloatToHalf(0.5f), .qs = {}};
  BlockQ4_1 q1 = {.d = FloatToHalf(0.5f), .m = FloatToHalf(-3.0f), .qs = {}};
  for (int i = 0; i < 16; ++i) q0.qs[i] = q1.qs[i] = static_cast<uint8_t>(i | ((15 - i) << 4));
  const auto v0 = Values(DType::kQ4_0, q0);
  const auto v1 = Values(DType::kQ4_1, q1);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(v0[i], 0.5f * (i - 8));
    EXPECT_EQ(v0[i + 16], 0.5f * (7 - i));
    EXPECT_EQ(v1[i], 0.5f * i - 3.0f);
    EXPECT_EQ(v1[i + 16], 0.5f * (15 - i) - 3.0f);
  }
}

TEST(Dequantize, Q5TakesItsFifthBitFromTheMask) {
  BlockQ5_0 q0 = {.d = FloatToHalf(2.0f), .qh = {0x01, 0, 0, 0x80}, .qs = {}};
  q0.qs[0] = 3;
  q0.qs[15] = 4 << 4;
  const auto v0 = Values(DType::kQ5_0, q0);
  EXPECT_EQ(v0[0], 2.0f * (19 - 16));
  EXPECT_EQ(v0[1], 2.0f * -16);
  EXPECT_EQ(v0[31], 2.0f * (20 - 16));
  BlockQ5_1 q1 = {
      .d = FloatToHalf(2.0f), .m = FloatToHalf(1.0f), .qh = {0x01, 0, 0, 0x80}, .qs = {}};
  EXPECT_EQ(Values(DType::kQ5_1, q1)[0], 33.0f);
  EXPECT_EQ(Values(DType::kQ5_1, q1)[31], 33.0f);
  EXPECT_EQ(Values(DType::kQ5_1, q1)[16], 1.0f);
}

TEST(Dequantize, KScalesUseSixBits) {
  // Scale and min of group 5: low nibbles in byte 9, high bits in bytes 1 and 5.
  BlockQ4_K block = {.d = FloatToHalf(1.0f), .dmin = FloatToHalf(1.0f), .scales = {}, .qs = {}};
  block.scales[9] = 0x0a | (0x05 << 4);
  block.scales[1] = 2 << 6;
  block.scales[5] = 1 << 6;
  std::memset(block.qs + 64, 0x30, 32);
  const auto values = Values(DType::kQ4_K, block);
  const float scale = 0x2a, min = 0x15;
  for (int i = 160; i < 192; ++i) EXPECT_EQ(values[i], 3 * scale - min);
  EXPECT_EQ(values[0], 0.0f);
  // Group 1 has scale 0 (only its top bits, which belong to group 5, are set) and min 0.
  EXPECT_EQ(values[32], 0.0f);
}

TEST(Dequantize, Q5KHighBitIsTheGroupNumber) {
  BlockQ5_K block = {.d = FloatToHalf(1.0f), .dmin = 0, .scales = {1, 1, 1, 1}, .qh = {}, .qs = {}};
  block.qh[7] = 1 << 2;
  const auto values = Values(DType::kQ5_K, block);
  EXPECT_EQ(values[2 * 32 + 7], 16.0f);
  EXPECT_EQ(values[3 * 32 + 7], 0.0f);
}

TEST(Dequantize, Q6KInterleavesFourGroups) {
  BlockQ6_K block = {};
  block.d = FloatToHalf(1.0f);
  for (int i = 0; i < 16; ++i) block.scales[i] = static_cast<int8_t>(i - 8);
  block.ql[64 + 32 + 5] = 0x0c | (0x09 << 4);  // second half: groups 1 (low) and 3 (high), lane 5
  block.qh[32 + 5] = (2 << 2) | (3 << 6);
  const auto values = Values(DType::kQ6_K, block);
  EXPECT_EQ(values[128 + 32 + 5], (10 - 8) * ((0x0c | 0x20) - 32));
  EXPECT_EQ(values[128 + 96 + 5], (14 - 8) * ((0x09 | 0x30) - 32));
  EXPECT_EQ(values[0], -8 * -32);
}

TEST(Dequantize, Q2KHasAScaleAndAMinimumForEvery16) {
  BlockQ2_K block = {};
  block.d = FloatToHalf(0.5f);
  block.dmin = FloatToHalf(2.0f);
  block.scales[11] = 0x5 | (0x3 << 4);  // elements 176..191: second half, group 1, last 16
  block.qs[32 + 16] = 2 << 2;
  const auto values = Values(DType::kQ2_K, block);
  EXPECT_EQ(values[176], 0.5f * 5 * 2 - 2.0f * 3);
  EXPECT_EQ(values[177], -2.0f * 3);
  EXPECT_EQ(values[160], 0.0f);
}

TEST(Dequantize, Q3KTakesItsThirdBitFromTheMask) {
  BlockQ3_K block = {};
  block.d = FloatToHalf(1.0f);
  block.scales[3] = 0xf0;      // low nibble of scale 11
  block.scales[8 + 3] = 0x10;  // its two high bits: bits 4..5
  block.hmask[16] = 1 << 5;
  block.qs[32 + 16] = 3 << 2;
  const auto values = Values(DType::kQ3_K, block);
  const float scale = (15 | (1 << 4)) - 32;
  EXPECT_EQ(values[176], scale * (7 - 4));
  EXPECT_EQ(values[177], scale * -4);
}

TEST(Dequantize, Iq4CodesStandForATable) {
  BlockIQ4_NL nl = {.d = FloatToHalf(0.5f), .qs = {}};
  nl.qs[3] = 0x0f | (0x8 << 4);
  const auto v = Values(DType::kIQ4_NL, nl);
  EXPECT_EQ(v[3], 0.5f * 113);
  EXPECT_EQ(v[19], 0.5f * 1);
  EXPECT_EQ(v[0], 0.5f * -127);
  BlockIQ4_XS xs = {.d = FloatToHalf(1.0f), .scales_h = 2 << 10, .scales_l = {}, .qs = {}};
  xs.scales_l[2] = 0x7 << 4;  // group 5
  xs.qs[16 * 5] = 0x9;
  EXPECT_EQ(Values(DType::kIQ4_XS, xs)[160], ((7 | (2 << 4)) - 32) * 13.0f);
  EXPECT_EQ(Values(DType::kIQ4_XS, xs)[0], -32 * -127.0f);
}

TEST(Dequantize, Mxfp4HasPowersOfTwo) {
  BlockMXFP4 block = {.e = 128, .qs = {}};
  block.qs[0] = 0x7 | (0xf << 4);
  const auto values = Values(DType::kMXFP4, block);
  EXPECT_EQ(values[0], 12.0f);
  EXPECT_EQ(values[16], -12.0f);
  block.e = 1;
  EXPECT_EQ(Values(DType::kMXFP4, block)[0], 12 * 0x1p-127f);
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(FloatToBFloat16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(FloatToBFloat16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::nanf("")))));
}

TEST(Dequantize, RowBytesMatchTheFormats) {
  EXPECT_EQ(RowBytes(DType::kF32, 3), 12);
  EXPECT_EQ(RowBytes(DType::kQ4_1, 576), 360);
  EXPECT_EQ(RowBytes(DType::kQ6_K, 512), 420);
}

}  // namespace
}  // namespace rempart::kernels
