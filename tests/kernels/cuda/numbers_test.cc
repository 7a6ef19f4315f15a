// SPDX-License-Identifier: Apache-2.0
// Number formats against exhaustive or independent definitions, and the weights of sampling.
#include "kernels/cuda/numbers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/blocks.h"
#include "kernels/sample_math.h"

namespace rempart::kernels::cuda {
namespace {

// By the definition of E4M3: sign, four bits of exponent with bias 7, three of mantissa.
float Fp8Value(int code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(1.0f + mantissa / 8.0f, exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
}

TEST(Numbers, Fp8DecodesEveryCode) {
  for (int code = 0; code < 256; ++code) {
    const float actual = ToFloat(Fp8{static_cast<uint8_t>(code)});
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(actual));
    } else {
      EXPECT_EQ(actual, Fp8Value(code)) << code;
    }
  }
}

TEST(Numbers, Fp8RoundsToTheNearestEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = Fp8Value(code), high = Fp8Value(code + 1);
    const float middle = (low + high) / 2;
    EXPECT_EQ(ToFp8(low).bits, code);
    EXPECT_EQ(ToFp8(-high).bits, 0x80 | (code + 1));
    EXPECT_EQ(ToFp8(std::nextafter(middle, low)).bits, code);
    EXPECT_EQ(ToFp8(std::nextafter(middle, high)).bits, code + 1);
    EXPECT_EQ(ToFp8(middle).bits, code % 2 == 0 ? code : code + 1);
  }
  EXPECT_EQ(ToFp8(1e9f).bits, 0x7e);
  EXPECT_EQ(ToFp8(-INFINITY).bits, 0xfe);
  EXPECT_EQ(ToFp8(NAN).bits & 0x7f, 0x7f);
}

TEST(Numbers, Bf16RoundsToTheNearestEven) {
  EXPECT_EQ(ToBf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBf16(1.0f + 0x1p-8f).bits, 0x3f80);            // the middle, to even
  EXPECT_EQ(ToBf16(1.0f + 0x1p-7f + 0x1p-8f).bits, 0x3f82);  // the middle, to even
  EXPECT_EQ(ToBf16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(NAN))));
  EXPECT_EQ(ToFloat(ToBf16(INFINITY)), INFINITY);
  EXPECT_EQ(ToFloat(ToBf16(std::numeric_limits<float>::max())), INFINITY);
  EXPECT_EQ(PackBf16(1.0f, -2.0f), 0xc0003f80u);
}

TEST(Numbers, HalfDecodesLikeTheCpusKernels) {
  for (int bits = 0; bits < 65536; ++bits) {
    const float expected = HalfToFloat(static_cast<uint16_t>(bits));
    const float actual = HalfBitsToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual));
    } else {
      EXPECT_EQ(actual, expected) << bits;
    }
  }
}

TEST(Numbers, HalfRoundsToTheNearestEven) {
  for (int code = 0; code < 0x7bff; ++code) {
    const float low = HalfBitsToFloat(static_cast<uint16_t>(code));
    const float high = HalfBitsToFloat(static_cast<uint16_t>(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(ToHalf(low).bits, code);
    EXPECT_EQ(ToHalf(-high).bits, 0x8000 | (code + 1));
    EXPECT_EQ(ToHalf(std::nextafter(middle, low)).bits, code);
    EXPECT_EQ(ToHalf(std::nextafter(middle, high)).bits, code + 1);
    EXPECT_EQ(ToHalf(middle).bits, code % 2 == 0 ? code : code + 1);
  }
  EXPECT_EQ(ToHalf(65519.0f).bits, 0x7bff);
  EXPECT_EQ(ToHalf(65520.0f).bits, 0x7c00) << "the middle to infinity";
  EXPECT_EQ(ToHalf(-INFINITY).bits, 0xfc00);
  EXPECT_TRUE(std::isnan(ToFloat(ToHalf(NAN))));
}

TEST(SampleMath, ExpOfNegativeIsAccurate) {
  for (float x = 0.0f; x > -86.0f; x -= 0.00731f) {
    EXPECT_NEAR(ExpOfNegative(x) / std::exp(static_cast<double>(x)), 1.0, 3e-7) << x;
  }
  EXPECT_EQ(ExpOfNegative(0.0f), 1.0f);
  EXPECT_EQ(ExpOfNegative(-INFINITY), 0.0f);
  EXPECT_EQ(ExpOfNegative(-1e30f), 0.0f);
}

TEST(SampleMath, TokenRankOrdersByLogitThenById) {
  const float logits[] = {-INFINITY, -1e30f, -2.0f, -1e-30f, 0.0f, 1e-30f, 3.0f, 1e30f};
  for (size_t i = 1; i < std::size(logits); ++i) {
    EXPECT_LT(TokenRank(logits[i - 1], 0), TokenRank(logits[i], 1 << 20)) << i;
    EXPECT_GT(TokenRank(logits[i], 5), TokenRank(logits[i], 6)) << i;
  }
}

TEST(SampleMath, WeightsOfTheLargestVocabularyDoNotOverflow) {
  EXPECT_LT(static_cast<double>(FixedWeight(1.0f)) * (1 << 23), 0x1p64);
}

TEST(SampleMath, LogOfWeightsIsAccurate) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t sum = FixedWeight(1.0f) + (random() >> (1 + i % 40));
    const double expected = std::log(static_cast<double>(sum) * 0x1p-40);
    EXPECT_NEAR(LogOfWeights(sum), expected, 2e-7 * (1 + expected)) << sum;
  }
  EXPECT_EQ(LogOfWeights(FixedWeight(1.0f)), 0.0f);
}

TEST(SampleMath, UniformStaysBelowOne) {
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = UniformOf(i * 977, i);
    EXPECT_GE(u, 0.0);
    EXPECT_LT(u, 1.0);
  }
}

}  // namespace
}  // namespace rempart::kernels::cuda
