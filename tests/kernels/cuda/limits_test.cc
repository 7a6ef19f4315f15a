// SPDX-License-Identifier: Apache-2.0
// Steps at the limits of what a grid can be.
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

}  // namespace
}  // namespace rempart::kernels::cuda
