// SPDX-License-Identifier: Apache-2.0
// F32, F16 and BF16 weights (kernels/cpu/matmul_plain.inl.h) in every table, over shapes around the
// sizes of vectors, tiles, panels and column blocks.
#include <algorithm>
#include <limits>

#include "tests/kernels/conformance.h"

namespace rempart::kernels {
namespace {

constexpr DType kPlainTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

struct Shape {
  int64_t rows, cols, tokens;
};

constexpr Shape kShapes[] = {{1, 1, 1},     {3, 15, 1},   {4, 16, 2},   {5, 31, 3},  {6, 32, 4},
                             {7, 33, 5},    {8, 64, 6},   {9, 65, 7},   {64, 96, 1}, {65, 200, 12},
                             {17, 576, 13}, {3, 2080, 2}, {5, 4130, 7}, {70, 64, 33}};

std::string What(const char* op, DType type, const Shape& shape) {
  return std::string(op) + " " + DTypeName(type) + " rows " + std::to_string(shape.rows) +
         " cols " + std::to_string(shape.cols) + " tokens " + std::to_string(shape.tokens);
}

// One product, rows of x and y wider than what is read and written. The weights end with their
// memory: a read beyond them is an error under the address sanitizer.
struct Case {
  Case(Random& random, DType type, const Shape& shape)
      : shape(shape),
        weights(RandomWeights(random, type, shape.rows, shape.cols)),
        x_stride(shape.cols + 5),
        x(RandomFloats(random, shape.tokens * x_stride)),
        bias(RandomFloats(random, shape.rows)) {}

  MatmulArgs Args(std::vector<float>* y) const {
    y->assign(shape.tokens * (shape.rows + 1), -7.0f);
    return {.w = weights.view,
            .x = x.data(),
            .x_stride = x_stride,
            .bias = bias.data(),
            .y = y->data(),
            .y_stride = shape.rows + 1,
            .num_tokens = shape.tokens};
  }

  // Of row r and token t: the sum of |w * x|, which bounds what rounding can do.
  float Size(int64_t r, int64_t t) const {
    std::vector<float> row(shape.cols);
    ReferenceOps().dequantize(weights.view, row.data(), r, r + 1);
    double size = std::fabs(bias[r]);
    for (int64_t c = 0; c < shape.cols; ++c) size += std::fabs(row[c] * x[t * x_stride + c]);
    return static_cast<float>(size);
  }

  Shape shape;
  Weights weights;
  int64_t x_stride;
  std::vector<float> x, bias;
};

class PlainMatmulTest : public testing::TestWithParam<const Ops*> {
 protected:
  const Ops& ops() const { return *GetParam(); }
  Random random_{20253};
};

INSTANTIATE_TEST_SUITE_P(Tiers, PlainMatmulTest, testing::ValuesIn(OpsUnderTest()), OpsName);

// F32 sums of up to 4130 products: each may be off by a few roundings of the largest partial sum.
constexpr float kTolerance = 4e-7f;

TEST_P(PlainMatmulTest, MatchesTheReference) {
  for (const DType type : kPlainTypes) {
    for (const bool exact : {true, false}) {
      float worst = 0;
      for (const Shape& shape : kShapes) {
        const Case c(random_, type, shape);
        std::vector<float> expected, actual;
        const auto of = [&](const Ops& table) {
          return exact ? table.matmul_exact : table.matmul_fast;
        };
        of(ReferenceOps())(c.Args(&expected), 0, shape.rows);
        of(ops())(c.Args(&actual), 0, shape.rows);
        for (int64_t t = 0; t < shape.tokens; ++t) {
          for (int64_t r = 0; r < shape.rows; ++r) {
            const int64_t at = t * (shape.rows + 1) + r;
            worst = std::max(worst, std::fabs(actual[at] - expected[at]) / c.Size(r, t));
          }
          EXPECT_EQ(actual[t * (shape.rows + 1) + shape.rows], -7.0f) << "beyond the last row";
        }
      }
      EXPECT_LE(worst, kTolerance) << DTypeName(type);
      std::printf("%-16s %s %-4s worst error %.1e of the sum of magnitudes, tolerance %.1e\n",
                  ops().name, exact ? "exact" : "fast ", DTypeName(type), double{worst},
                  double{kTolerance});
    }
  }
}

// Invariants 1 and 2 of ops.h, to the bit: any batch, any split of the rows.
TEST_P(PlainMatmulTest, DoesNotDependOnTheBatchOrTheSplit) {
  for (const DType type : kPlainTypes) {
    for (const Shape& shape : {Shape{83, 4131, 23}, Shape{40, 70, 40}}) {
      const Case c(random_, type, shape);
      for (auto matmul : {ops().matmul_exact, ops().matmul_fast}) {
        std::vector<float> whole, pieces;
        matmul(c.Args(&whole), 0, shape.rows);
        const MatmulArgs args = c.Args(&pieces);
        for (int64_t token = 0, count = 1; token < shape.tokens; token += count, ++count) {
          MatmulArgs part = args;
          part.num_tokens = std::min(count, shape.tokens - token);
          part.x += token * args.x_stride;
          part.y += token * args.y_stride;
          for (int64_t row = 0; row < shape.rows; row += kRowAlign) {
            matmul(part, row, std::min(row + kRowAlign, shape.rows));
          }
        }
        EXPECT_EQ(pieces, whole) << What("matmul", type, shape);
      }
    }
  }
}

// The caller may round the activations once for all rows: the same bits.
TEST_P(PlainMatmulTest, TakesActivationsThatAreRoundedAlready) {
  if (ops().round == nullptr) {
    // The table says that its kernels read x itself; then there is nothing that could go unread.
    EXPECT_FALSE(std::string_view(ops().name).starts_with("avx512bf16"));
    return;
  }
  for (const Shape& shape : kShapes) {
    const Case c(random_, DType::kBF16, shape);
    std::vector<float> whole, rounded;
    ops().matmul_fast(c.Args(&whole), 0, shape.rows);
    MatmulArgs args = c.Args(&rounded);
    args.x_rounded_stride = RoundedStride(shape.cols);
    // The memory ends with the last token's zeros.
    const int64_t row = (shape.cols + 31) / 32 * 32;
    std::vector<uint16_t> x((shape.tokens - 1) * args.x_rounded_stride + row, 0x7fc0);
    ops().round(c.x.data(), c.x_stride, shape.cols, x.data(), args.x_rounded_stride, 0,
                shape.tokens);
    args.x_rounded = x.data();
    args.x = nullptr;
    ops().matmul_fast(args, 0, shape.rows);
    EXPECT_EQ(rounded, whole) << What("matmul_fast", DType::kBF16, shape);
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t i = 0; i < row; ++i) {
        const uint16_t expected =
            i < shape.cols ? FloatToBFloat16(c.x[t * c.x_stride + i]) : uint16_t{0};
        ASSERT_EQ(x[t * args.x_rounded_stride + i], expected) << "token " << t << " column " << i;
      }
    }
  }
}

TEST(RoundedStride, HasRoomForZerosAndNeverEndsWhereItBeganInTheCache) {
  EXPECT_EQ(RoundedStride(1), 32);
  EXPECT_EQ(RoundedStride(576), 576);
  EXPECT_EQ(RoundedStride(577), 608);
  EXPECT_EQ(RoundedStride(1024), 1056);
  EXPECT_EQ(RoundedStride(2040), 2080);
}

// What `fast` may do to BF16 weights, and to nothing else: round activations once.
TEST_P(PlainMatmulTest, RoundsActivationsOfBFloat16WeightsToNearestEven) {
  for (const DType type : kPlainTypes) {
    Case c(random_, type, {4, 64, 1});
    const float ties[] = {1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, 1.0f + 0x1p-8f + 0x1p-20f,
                          -1.0f - 0x1p-8f};
    const float rounded[] = {1.0f, 1.0f + 4 * 0x1p-8f, 1.0f + 2 * 0x1p-8f, -1.0f};
    for (int i = 0; i < 4; ++i) {
      std::fill(c.weights.bytes.begin(), c.weights.bytes.end(), uint8_t{0});
      const uint16_t one = type == DType::kF16 ? FloatToHalf(1.0f) : FloatToBFloat16(1.0f);
      const size_t width = static_cast<size_t>(BlockBytes(type));
      std::memcpy(c.weights.bytes.data() + 37 * width + (width - 2), &one, 2);
      std::fill(c.x.begin(), c.x.end(), 1.0f);
      std::fill(c.bias.begin(), c.bias.end(), 0.0f);
      c.x[37] = ties[i];
      std::vector<float> exact, fast;
      ops().matmul_exact(c.Args(&exact), 0, 4);
      ops().matmul_fast(c.Args(&fast), 0, 4);
      EXPECT_EQ(exact[0], ties[i]) << DTypeName(type);
      EXPECT_EQ(fast[0], type == DType::kBF16 ? rounded[i] : ties[i]) << DTypeName(type);
    }
  }
}

// A broken activation is seen, not hidden.
TEST_P(PlainMatmulTest, KeepsInfinitiesAndNotANumber) {
  for (const DType type : kPlainTypes) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      Case c(random_, type, {5, 67, 2});
      c.x[40] = bad;
      for (auto matmul : {ops().matmul_exact, ops().matmul_fast}) {
        std::vector<float> y;
        matmul(c.Args(&y), 0, 5);
        for (int r = 0; r < 5; ++r) {
          EXPECT_FALSE(std::isfinite(y[r])) << What("matmul", type, c.shape);
          EXPECT_TRUE(std::isfinite(y[6 + r])) << "another token";
        }
      }
    }
  }
}

}  // namespace
}  // namespace rempart::kernels
