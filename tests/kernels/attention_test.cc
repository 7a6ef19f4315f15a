// SPDX-License-Identifier: Apache-2.0
// The paged KV cache and attention of every table against the reference.
#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/kernels/conformance.h"

namespace rempart::kernels {
namespace {

class AttentionTest : public ConformanceTest {
 protected:
  Random random_{20253};
};

INSTANTIATE_TEST_SUITE_P(Tiers, AttentionTest, testing::ValuesIn(OpsUnderTest()), OpsName);

struct Shape {
  int64_t context;  // tokens in the cache, the queries among them
  int64_t tokens;   // queries: the last ones
  int64_t heads, kv_heads, head_dim;
  int64_t window = 0;
  float softcap = 0.0f;
  DType type = DType::kF16;
};

// One layer's cache with its blocks in random order; what is never written is NaN.
struct Case {
  Case(const Ops& ops, Random& random, const Shape& shape) : shape(shape) {
    const int64_t blocks = (shape.context + kKvBlockTokens - 1) / kKvBlockTokens;
    const int64_t block_bytes = KvBlockBytes(shape.type, shape.kv_heads, shape.head_dim);
    stride = block_bytes + 64;
    cache.assign(blocks * stride / 4 + 16, std::numeric_limits<float>::quiet_NaN());
    table.resize(blocks);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), random);
    const int64_t width = shape.kv_heads * shape.head_dim;
    k = RandomFloats(random, shape.context * width);
    v = RandomFloats(random, shape.context * width);
    q = RandomFloats(random, shape.tokens * shape.heads * shape.head_dim);
    Store(ops, 0, shape.context);
  }

  KvView Kv() {
    return {.data = cache.data(),
            .block_stride_bytes = stride,
            .type = shape.type,
            .kv_heads = shape.kv_heads,
            .head_dim = shape.head_dim};
  }

  void Store(const Ops& ops, int64_t begin, int64_t end) {
    const int64_t width = shape.kv_heads * shape.head_dim;
    ops.kv_store({.kv = Kv(),
                  .k = k.data(),
                  .k_stride = width,
                  .v = v.data(),
                  .v_stride = width,
                  .block_table = table.data(),
                  .first_position = 0},
                 begin, end);
  }

  AttentionArgs Args(std::vector<float>* out) {
    const int64_t width = shape.heads * shape.head_dim;
    out->assign(shape.tokens * width, -7.0f);
    return {.kv = Kv(),
            .q = q.data(),
            .q_stride = width,
            .out = out->data(),
            .out_stride = width,
            .block_table = table.data(),
            .first_position = shape.context - shape.tokens,
            .num_tokens = shape.tokens,
            .num_heads = shape.heads,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
            .softcap = shape.softcap,
            .window = shape.window};
  }

  int64_t Items() const { return shape.tokens * shape.heads; }

  Shape shape;
  int64_t stride;
  std::vector<float> cache;  // float for its alignment
  std::vector<int32_t> table;
  std::vector<float> k, v, q;
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 8},
    {16, 1, 4, 2, 16},
    {17, 17, 3, 1, 64},
    {130, 1, 9, 3, 64},
    {300, 5, 6, 2, 32, 0, 0.0f, DType::kF32},
    {129, 129, 2, 1, 40, 0, 0.0f, DType::kF32},
    {40, 33, 4, 1, 256},
    {290, 7, 4, 4, 128, 33},
    {200, 200, 2, 1, 24, 50},
    {100, 3, 2, 2, 64, 0, 5.0f},
    {257, 2, 8, 1, 80, 128, 20.0f, DType::kF32},
    {270, 150, 3, 1, 64, 0, 0.0f, DType::kBF16},
    {131, 1, 5, 1, 72, 0, 0.0f, DType::kBF16},
    {270, 150, 3, 1, 64, 100, 0.0f, DType::kQ8_0},
    {400, 1, 6, 2, 120, 0, 10.0f, DType::kQ8_0},
    {300, 90, 2, 1, 256},
};

std::string What(const Shape& s) {
  return "context " + std::to_string(s.context) + " tokens " + std::to_string(s.tokens) +
         " heads " + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " dim " +
         std::to_string(s.head_dim) + " " + DTypeName(s.type) + " window " +
         std::to_string(s.window);
}

TEST_P(AttentionTest, StoresLikeTheReference) {
  for (const Shape& shape : kShapes) {
    Random a(1), b(1);
    const Case actual(ops(), a, shape), expected(ReferenceOps(), b, shape);
    EXPECT_EQ(std::memcmp(actual.cache.data(), expected.cache.data(), actual.cache.size() * 4), 0)
        << What(shape);
  }
}

TEST_P(AttentionTest, MatchesTheReference) {
  for (const Shape& shape : kShapes) {
    Case c(ReferenceOps(), random_, shape);
    std::vector<float> expected, actual;
    ReferenceOps().attention(c.Args(&expected), 0, c.Items());
    ops().attention(c.Args(&actual), 0, c.Items());
    ExpectClose(actual, expected, 3e-6f, 1e-5f, std::string("attention ") + DTypeName(shape.type),
                What(shape));
  }
}

// Scores far apart: the running maximum must carry the sums.
TEST_P(AttentionTest, LargeScores) {
  Case c(ReferenceOps(), random_, {400, 3, 2, 1, 64, 0, 0.0f, DType::kF32});
  for (float& value : c.q) value *= 40.0f;
  std::vector<float> expected, actual;
  ReferenceOps().attention(c.Args(&expected), 0, c.Items());
  ops().attention(c.Args(&actual), 0, c.Items());
  ExpectClose(actual, expected, 1e-4f, 1e-4f, "attention large scores", "F32");
}

// To the bit: one token at a time as in decode, in pieces, and all at once as in prefill.
TEST_P(AttentionTest, DoesNotDependOnTheBatchOrTheSplit) {
  for (const Shape& shape : kShapes) {
    Case c(ReferenceOps(), random_, shape);
    std::vector<float> whole, pieces, decode;
    ops().attention(c.Args(&whole), 0, c.Items());
    const AttentionArgs args = c.Args(&pieces);
    for (int64_t item = 0, count = 1; item < c.Items(); item += count, count = count % 5 + 1) {
      ops().attention(args, item, std::min(item + count, c.Items()));
    }
    EXPECT_EQ(pieces, whole) << What(shape);
    AttentionArgs one = c.Args(&decode);
    for (int64_t token = 0; token < shape.tokens; ++token) {
      one.num_tokens = 1;
      ops().attention(one, 0, shape.heads);
      ++one.first_position;
      one.q += one.q_stride;
      one.out += one.out_stride;
    }
    EXPECT_EQ(decode, whole) << What(shape);
  }
}

}  // namespace
}  // namespace rempart::kernels
