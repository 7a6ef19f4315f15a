// SPDX-License-Identifier: Apache-2.0
// Steps at the limits of what a grid can be, and arrays that lie where a GPU does not reach them.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

// More than a grid's y and z may have. All but the last token are those of padding.
TEST(Limits, AStepMayHaveMoreThan65535Tokens) {
  constexpr int64_t kTokens = 65536 + 1;
  constexpr int64_t kDim = 8;
  std::vector<int32_t> positions(kTokens, -1), slices(kTokens, 0);
  positions.back() = 0;
  std::vector<uint16_t> qkv(kTokens * kDim, 0);
  const std::vector<float> bias(kDim, 1.0f);
  RopeStoreArgs args;
  args.qkv = qkv.data();
  args.bias = bias.data();
  args.num_heads = 1;
  args.kv.head_dim = kDim;
  args.batch.num_tokens = kTokens;
  args.batch.positions = positions.data();
  args.batch.slice_of_token = slices.data();
  Table().rope_store(args, nullptr);
  constexpr uint16_t kOne = 0x3f80;  // in BF16
  for (int64_t i = 0; i < kDim; ++i) {
    EXPECT_EQ(qkv[i], 0);
    EXPECT_EQ(qkv[(kTokens - 1) * kDim + i], kOne);
  }
}

// What is read or written at once by the ops for 8-bit activations and the KV cache.
TEST(LimitsDeathTest, ArraysThatAreNotAlignedAreFound) {
  constexpr int64_t kCols = 128;
  alignas(16) static uint16_t x[kCols + 8] = {};
  alignas(16) static uint8_t codes[kCols + 16] = {};
  float scale = 0;
  const auto quantize = [&](int64_t x_at, int64_t codes_at) {
    Table().quantize_rows({x + x_at, codes + codes_at, &scale, false, 1, kCols, kScaleBlock, 1},
                          nullptr);
  };
  quantize(0, 0);
  EXPECT_DEATH(quantize(2, 0), "an access of 8 bytes");
  EXPECT_DEATH(quantize(0, 2), "an access of 4 bytes");

  constexpr int64_t kDim = 8;
  alignas(16) static uint16_t qkv[3 * kDim] = {};
  alignas(16) static uint8_t cache[2 * kKvBlockTokens * kDim * 2 + 16] = {};
  static const int32_t zero = 0;
  const auto store = [&](int64_t cache_at) {
    RopeStoreArgs args;
    args.qkv = qkv;
    args.num_heads = args.kv.kv_heads = 1;
    args.kv.data = cache + cache_at;
    args.kv.block_stride_bytes = 2 * kKvBlockTokens * kDim * 2;
    args.kv.head_dim = kDim;
    args.batch.num_tokens = args.batch.num_slices = args.batch.table_stride = 1;
    args.batch.positions = args.batch.slice_of_token = args.batch.block_tables = &zero;
    Table().rope_store(args, nullptr);
  };
  store(0);
  EXPECT_DEATH(store(1), "an access of 2 bytes");
}

}  // namespace
}  // namespace rempart::kernels::cuda
