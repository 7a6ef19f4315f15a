// SPDX-License-Identifier: Apache-2.0
// Norms, rotations, activations and reductions of every table against the reference.
#include <limits>
#include <tuple>

#include "tests/kernels/conformance.h"

namespace rempart::kernels {
namespace {

class ElementwiseTest : public ConformanceTest {
 protected:
  Random random_{20252};
};

INSTANTIATE_TEST_SUITE_P(Tiers, ElementwiseTest, testing::ValuesIn(OpsUnderTest()), OpsName);

constexpr int64_t kSizes[] = {1, 3, 8, 15, 16, 17, 33, 64, 100, 577};

TEST_P(ElementwiseTest, RmsNorm) {
  for (int64_t cols : kSizes) {
    const auto x = RandomFloats(random_, 3 * (cols + 1), 4.0f);
    const auto weight = RandomFloats(random_, cols);
    for (const float* w : {weight.data(), static_cast<const float*>(nullptr)}) {
      std::vector<float> expected(3 * cols, 1.0f), actual(3 * cols, 1.0f);
      ReferenceOps().rms_norm(x.data(), cols + 1, w, 1e-5f, cols, expected.data(), cols, 0, 2);
      ops().rms_norm(x.data(), cols + 1, w, 1e-5f, cols, actual.data(), cols, 0, 2);
      ExpectClose(actual, expected, 1e-6f, 3e-6f, "rms_norm", "cols " + std::to_string(cols));
    }
    std::vector<float> in_place = x, apart(x.size());
    ops().rms_norm(x.data(), cols + 1, weight.data(), 1e-5f, cols, apart.data(), cols + 1, 0, 3);
    ops().rms_norm(in_place.data(), cols + 1, weight.data(), 1e-5f, cols, in_place.data(), cols + 1,
                   0, 3);
    for (int64_t i = 0; i < cols; ++i) EXPECT_EQ(in_place[i], apart[i]);
  }
}

TEST_P(ElementwiseTest, RopeBothLayouts) {
  for (int64_t head_dim : {2, 8, 34, 64, 128}) {
    for (int64_t rotary_dim : {head_dim, head_dim / 4 * 2 + 2}) {
      if (rotary_dim > head_dim) continue;
      const int64_t half = rotary_dim / 2;
      const std::vector<int32_t> positions = {0, 1, 777, 8191};
      std::vector<float> frequencies(half), cos(4 * half), sin(4 * half);
      for (int64_t i = 0; i < half; ++i) {
        frequencies[i] = std::pow(10000.0f, -2.0f * static_cast<float>(i) / rotary_dim);
      }
      ops().rope_angles(positions.data(), frequencies.data(), half, 1.5f, cos.data(), sin.data(), 0,
                        4);
      std::vector<float> expected_cos(4 * half), expected_sin(4 * half);
      ReferenceOps().rope_angles(positions.data(), frequencies.data(), half, 1.5f,
                                 expected_cos.data(), expected_sin.data(), 0, 4);
      ExpectClose(cos, expected_cos, 1e-6f, 0, "rope_angles cos",
                  "head_dim " + std::to_string(head_dim));
      ExpectClose(sin, expected_sin, 1e-6f, 0, "rope_angles sin",
                  "head_dim " + std::to_string(head_dim));
      for (RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalves}) {
        std::vector<float> expected = RandomFloats(random_, 4 * (3 * head_dim + 1));
        std::vector<float> actual = expected;
        RopeArgs args = {.x = expected.data(),
                         .x_stride = 3 * head_dim + 1,
                         .cos = cos.data(),
                         .sin = sin.data(),
                         .num_heads = 3,
                         .head_dim = head_dim,
                         .rotary_dim = rotary_dim,
                         .layout = layout};
        ReferenceOps().rope(args, 1, 4);
        args.x = actual.data();
        ops().rope(args, 1, 4);
        ExpectClose(actual, expected, 1e-6f, 1e-6f, "rope", "head_dim " + std::to_string(head_dim));
      }
    }
  }
}

TEST_P(ElementwiseTest, ActivationsTimesUp) {
  for (int64_t cols : kSizes) {
    auto gate = RandomFloats(random_, 2 * (cols + 2), 5.0f);
    gate[0] = 200.0f;
    if (cols > 1) gate[1] = -200.0f;
    const auto up = RandomFloats(random_, 2 * (cols + 2));
    for (auto [tested, reference, name] :
         {std::tuple(ops().silu_mul, ReferenceOps().silu_mul, "silu_mul"),
          std::tuple(ops().gelu_tanh_mul, ReferenceOps().gelu_tanh_mul, "gelu_tanh_mul")}) {
      std::vector<float> expected(2 * cols), actual(2 * cols);
      reference(gate.data(), up.data(), cols + 2, cols, expected.data(), cols, 0, 2);
      tested(gate.data(), up.data(), cols + 2, cols, actual.data(), cols, 0, 2);
      ExpectClose(actual, expected, 1e-6f, 2e-6f, name, "cols " + std::to_string(cols));
      std::vector<float> in_place = gate;
      tested(in_place.data(), up.data(), cols + 2, cols, in_place.data(), cols + 2, 0, 1);
      for (int64_t i = 0; i < cols; ++i) EXPECT_EQ(in_place[i], actual[i]);
    }
  }
}

TEST_P(ElementwiseTest, AddScaleSoftcap) {
  for (int64_t n : kSizes) {
    const auto a = RandomFloats(random_, n, 20.0f);
    const auto b = RandomFloats(random_, n, 20.0f);
    std::vector<float> expected(n, 0.0f), actual(n, 0.0f);
    ReferenceOps().add(a.data(), b.data(), expected.data(), n / 3, n);
    ops().add(a.data(), b.data(), actual.data(), n / 3, n);
    EXPECT_EQ(actual, expected);
    ReferenceOps().scale(expected.data(), 0.3f, n / 3, n);
    ops().scale(actual.data(), 0.3f, n / 3, n);
    EXPECT_EQ(actual, expected);
    ReferenceOps().softcap(expected.data(), 5.0f, n / 3, n);
    ops().softcap(actual.data(), 5.0f, n / 3, n);
    ExpectClose(actual, expected, 3e-6f, 1e-6f, "softcap", "n " + std::to_string(n));
  }
}

TEST_P(ElementwiseTest, SoftmaxAndItsLogSum) {
  for (int64_t n : {1, 2, 15, 16, 17, 1000, 49152}) {
    for (float deviation : {1.0f, 30.0f}) {
      std::vector<float> expected = RandomFloats(random_, n, deviation);
      std::vector<float> actual = expected;
      const float expected_log = ReferenceOps().softmax(expected.data(), n);
      EXPECT_NEAR(ops().softmax(actual.data(), n), expected_log, 2e-5f);
      ExpectClose(actual, expected, 1e-9f, 1e-5f, "softmax", "n " + std::to_string(n));
    }
  }
}

TEST_P(ElementwiseTest, ArgmaxTakesTheFirstOfEquals) {
  for (int64_t n : {1, 2, 15, 16, 17, 1000}) {
    std::vector<float> x = RandomFloats(random_, n);
    for (int64_t at = 0; at < n; at += n / 7 + 1) {
      std::vector<float> y = x;
      y[at] = y[n - 1] = 10.0f;
      EXPECT_EQ(ops().argmax(y.data(), n), at);
    }
    for (int64_t at = 0; at < n; at += n / 7 + 1) {
      std::vector<float> y = x;
      y[at] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_EQ(ops().argmax(y.data(), n), -1);
    }
    std::fill(x.begin(), x.end(), -std::numeric_limits<float>::infinity());
    EXPECT_EQ(ops().argmax(x.data(), n), 0);
  }
}

// To the bit: a token that is drawn depends on it.
TEST_P(ElementwiseTest, WeighsLikeTheReference) {
  for (int64_t n : {1, 2, 15, 16, 17, 1000, 49152}) {
    for (const float temperature : {1e-30f, 0.1f, 0.7f, 1.0f, 3.0f}) {
      std::vector<float> x = RandomFloats(random_, n, 20.0f);
      for (float& logit : x) logit = std::min(logit, 50.0f);
      x[static_cast<size_t>(n) / 2] = -std::numeric_limits<float>::infinity();
      x[0] = 50.0f;
      std::vector<float> expected(n), actual(n);
      const uint64_t sum = ReferenceOps().weigh(x.data(), n, 50.0f, temperature, expected.data());
      EXPECT_EQ(ops().weigh(x.data(), n, 50.0f, temperature, actual.data()), sum);
      EXPECT_EQ(actual, expected) << n << " logits, temperature " << temperature;
      EXPECT_EQ(actual[0], 1.0f);
    }
  }
}

}  // namespace
}  // namespace rempart::kernels
