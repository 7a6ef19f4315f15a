// SPDX-License-Identifier: Apache-2.0
// Dequantisation, activation quantisation and both matmuls of every table against the reference.
#include <algorithm>
#include <numeric>

#include "tests/kernels/conformance.h"

namespace rempart::kernels {
namespace {

class MatmulTest : public ConformanceTest {
 protected:
  Random random_{20251};
};

INSTANTIATE_TEST_SUITE_P(Tiers, MatmulTest, testing::ValuesIn(OpsUnderTest()), OpsName);

struct Shape {
  int64_t rows, cols, tokens;
};

// Odd rows and tokens; columns of whole blocks, and for plain numbers any.
std::vector<Shape> Shapes(DType type) {
  const int64_t block = BlockElements(type);
  if (block == 1) return {{1, 1, 1}, {5, 7, 2}, {33, 172, 3}, {16, 300, 9}, {40, 577, 35}};
  return {{1, block, 1},   {7, 2 * block, 3},  {16, 3 * block, 2},  {33, 2 * block, 5},
          {50, block, 13}, {17, 5 * block, 8}, {48, 3 * block, 31}, {24, block, 103}};
}

std::string Op(const std::string& name, DType type) { return name + " " + DTypeName(type); }

std::string What(DType type, const Shape& shape) {
  return std::string(DTypeName(type)) + " rows " + std::to_string(shape.rows) + " cols " +
         std::to_string(shape.cols) + " tokens " + std::to_string(shape.tokens);
}

// Activations of one matmul with strides wider than the rows.
struct Case {
  Case(const Ops& ops, Random& random, DType type, const Shape& shape)
      : shape(shape),
        weights(RandomWeights(random, type, shape.rows, shape.cols)),
        packed(ops, weights.view),
        x_stride(shape.cols + 3),
        xq_stride(shape.cols / kActivationGroup + 1),
        x(RandomFloats(random, shape.tokens * x_stride)),
        xq(shape.tokens * xq_stride),
        bias(RandomFloats(random, shape.rows)) {
    if (shape.cols % kActivationGroup == 0) {
      ReferenceOps().quantize(x.data(), x_stride, shape.cols, xq.data(), xq_stride, 0,
                              shape.tokens);
    }
  }

  MatmulArgs Args(std::vector<float>* y) const {
    y->assign(shape.tokens * (shape.rows + 2), -7.0f);
    return {.w = weights.view,
            .packed = packed.data(),
            .x = x.data(),
            .x_stride = x_stride,
            .xq = xq.data(),
            .xq_stride = xq_stride,
            .bias = bias.data(),
            .y = y->data(),
            .y_stride = shape.rows + 2,
            .num_tokens = shape.tokens};
  }

  Shape shape;
  Weights weights;
  PackedBuffer packed;
  int64_t x_stride, xq_stride;
  std::vector<float> x;
  std::vector<ActivationBlock> xq;
  std::vector<float> bias;
};

// Rounding of a sum of `cols` products, each of the size of the largest weight times an activation.
float Tolerance(const Case& c) {
  std::vector<float> values(c.weights.view.cols * c.weights.view.rows);
  ReferenceOps().dequantize(c.weights.view, values.data(), 0, c.weights.view.rows);
  float largest = 0;
  for (float value : values) largest = std::max(largest, std::fabs(value));
  return 3e-6f * largest * std::sqrt(static_cast<float>(c.weights.view.cols)) + 1e-6f;
}

TEST_P(MatmulTest, DequantizesLikeTheReference) {
  for (DType type : kAllTypes) {
    const int64_t cols = 3 * BlockElements(type) + (IsQuantized(type) ? 0 : 30);
    const Weights w = RandomWeights(random_, type, 5, cols);
    std::vector<float> expected(3 * cols), actual(3 * cols);
    ReferenceOps().dequantize(w.view, expected.data(), 1, 4);
    ops().dequantize(w.view, actual.data(), 1, 4);
    EXPECT_EQ(actual, expected) << DTypeName(type);
    const int32_t ids[] = {4, 0, 4};
    ReferenceOps().embed(w.view, ids, 2.5f, expected.data(), cols, 0, 3);
    ops().embed(w.view, ids, 2.5f, actual.data(), cols, 0, 3);
    EXPECT_EQ(actual, expected) << DTypeName(type);
  }
}

TEST_P(MatmulTest, QuantizesLikeTheReference) {
  std::vector<float> x = RandomFloats(random_, 3 * 100, 10.0f);
  std::fill(x.begin() + 100 + 32, x.begin() + 100 + 64, 0.0f);
  std::vector<ActivationBlock> expected(9), actual(9);
  ReferenceOps().quantize(x.data(), 100, 96, expected.data(), 3, 0, 3);
  ops().quantize(x.data(), 100, 96, actual.data(), 3, 0, 3);
  for (int b = 0; b < 9; ++b) {
    EXPECT_EQ(std::memcmp(&actual[b], &expected[b], sizeof(ActivationBlock)), 0) << b;
    EXPECT_EQ(actual[b].sum, std::accumulate(actual[b].q, actual[b].q + 32, 0));
  }
}

TEST_P(MatmulTest, ExactMatchesTheReference) {
  for (DType type : kAllTypes) {
    for (const Shape& shape : Shapes(type)) {
      const Case c(ops(), random_, type, shape);
      std::vector<float> expected, actual;
      ReferenceOps().matmul_exact(c.Args(&expected), 0, shape.rows);
      ops().matmul_exact(c.Args(&actual), 0, shape.rows);
      ExpectClose(actual, expected, Tolerance(c), 1e-5f, Op("matmul_exact", type),
                  What(type, shape));
    }
  }
}

TEST_P(MatmulTest, FastMatchesTheReference) {
  for (DType type : kAllTypes) {
    for (const Shape& shape : Shapes(type)) {
      const Case c(ops(), random_, type, shape);
      std::vector<float> expected, actual;
      ReferenceOps().matmul_fast(c.Args(&expected), 0, shape.rows);
      ops().matmul_fast(c.Args(&actual), 0, shape.rows);
      ExpectClose(actual, expected, 4 * Tolerance(c), 1e-5f, Op("matmul_fast", type),
                  What(type, shape));
    }
  }
}

// The codes and activations that come nearest to overflowing 16-bit partial sums.
TEST_P(MatmulTest, FastIsExactAtTheExtremes) {
  for (DType type : kAllTypes) {
    if (!IsQuantized(type)) continue;
    for (const uint8_t fill : {0xff, 0x80, 0x7f, 0x00}) {
      for (const auto& [sign, tokens] : {std::pair(1.0f, 2), {-1.0f, 2}, {1.0f, 9}, {-1.0f, 9}}) {
        const Shape shape = {16, 2 * BlockElements(type), tokens};
        Case c(ops(), random_, type, shape);
        // Codes at an extreme, scales of one.
        const Weights scales = c.weights;
        std::fill(c.weights.bytes.begin(), c.weights.bytes.end(), fill);
        const uint16_t one = FloatToHalf(1.0f);
        for (size_t at = 0; at < c.weights.bytes.size(); at += BlockBytes(type)) {
          if (type == DType::kMXFP4) {
            c.weights.bytes[at] = 128;
            continue;
          }
          const size_t d = type == DType::kQ6_K   ? offsetof(BlockQ6_K, d)
                           : type == DType::kQ2_K ? offsetof(BlockQ2_K, d)
                           : type == DType::kQ3_K ? offsetof(BlockQ3_K, d)
                                                  : 0;
          std::memcpy(c.weights.bytes.data() + at + d, &one, 2);
          const bool has_min = type == DType::kQ4_1 || type == DType::kQ5_1 ||
                               type == DType::kQ4_K || type == DType::kQ5_K || type == DType::kQ2_K;
          if (has_min) std::memcpy(c.weights.bytes.data() + at + d + 2, &one, 2);
        }
        std::fill(c.x.begin(), c.x.end(), sign);
        ReferenceOps().quantize(c.x.data(), c.x_stride, shape.cols, c.xq.data(), c.xq_stride, 0,
                                shape.tokens);
        c.packed = PackedBuffer(ops(), c.weights.view);
        std::vector<float> expected, actual;
        ReferenceOps().matmul_fast(c.Args(&expected), 0, shape.rows);
        ops().matmul_fast(c.Args(&actual), 0, shape.rows);
        ExpectClose(actual, expected, 1e-3f, 1e-5f, Op("matmul_fast extremes", type),
                    What(type, shape));
      }
    }
  }
}

// Tokens in pieces of 1, 2, 3 and more, and rows one kRowAlign at a time.
std::vector<float> InPieces(const Case& c, const Shape& shape, decltype(Ops::matmul_fast) matmul) {
  std::vector<float> pieces;
  const MatmulArgs args = c.Args(&pieces);
  for (int64_t token = 0, count = 1; token < shape.tokens; token += count, ++count) {
    MatmulArgs part = args;
    part.num_tokens = std::min(count, shape.tokens - token);
    part.x += token * args.x_stride;
    part.xq += token * args.xq_stride;
    part.y += token * args.y_stride;
    for (int64_t row = 0; row < shape.rows; row += kRowAlign) {
      matmul(part, row, std::min(row + kRowAlign, shape.rows));
    }
  }
  return pieces;
}

// Invariants 1 and 2 of ops.h, to the bit.
TEST_P(MatmulTest, DoesNotDependOnTheBatchOrTheSplit) {
  for (DType type : kAllTypes) {
    const Shape shape = {80, IsQuantized(type) ? 2 * BlockElements(type) : 70, 19};
    const Case c(ops(), random_, type, shape);
    for (auto matmul : {ops().matmul_exact, ops().matmul_fast}) {
      if (matmul == ops().matmul_fast && !IsQuantized(type)) continue;
      std::vector<float> whole;
      matmul(c.Args(&whole), 0, shape.rows);
      EXPECT_EQ(InPieces(c, shape, matmul), whole) << What(type, shape);
    }
  }
}

// More columns than a panel has, the last panel and block not full, and an odd row group.
TEST_P(MatmulTest, DoesNotDependOnTheBatchAcrossPanels) {
  for (DType type : kAllTypes) {
    if (!IsQuantized(type)) continue;
    const Shape shape = {80, 1280 + BlockElements(type), 19};
    const Case c(ops(), random_, type, shape);
    std::vector<float> whole, expected;
    ops().matmul_fast(c.Args(&whole), 0, shape.rows);
    EXPECT_EQ(InPieces(c, shape, ops().matmul_fast), whole) << What(type, shape);
    ReferenceOps().matmul_fast(c.Args(&expected), 0, shape.rows);
    ExpectClose(whole, expected, 4 * Tolerance(c), 1e-5f, Op("matmul_fast", type),
                What(type, shape));
  }
}

TEST_P(MatmulTest, PacksInAnySplit) {
  for (DType type : kAllTypes) {
    const Weights w = RandomWeights(random_, type, 37, BlockElements(type) * 2);
    const int64_t bytes = ops().packed_bytes(w.view);
    EXPECT_EQ(bytes % 64, 0);
    std::vector<uint8_t> whole(bytes), pieces(bytes);
    ops().pack_rows(w.view, whole.data(), 0, 37);
    ops().pack_rows(w.view, pieces.data(), 16, 37);
    ops().pack_rows(w.view, pieces.data(), 0, 16);
    EXPECT_EQ(pieces, whole) << DTypeName(type);
  }
}

}  // namespace
}  // namespace rempart::kernels
