// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a device's memory, with numbers that a person can check.
#include "worker/model/device_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kMiB = 1 << 20;

// Llama 3.1 8B.
ModelConfig Llama8B() {
  ModelConfig config;
  config.hidden = 4096;
  config.ffn = 14336;
  config.vocabulary = 128256;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.layers.resize(32);
  return config;
}

TEST(DeviceMemory, TheCacheTakesWhatIsLeft) {
  const DeviceModelOptions options;
  const auto plan = PlanDeviceMemory(Llama8B(), 15 * kGiB, options, 140 * kGiB);
  ASSERT_TRUE(plan.ok()) << plan.status();
  // 2 (K and V) * 8 heads * 128 * 16 tokens * 2 bytes * 32 layers.
  EXPECT_EQ(plan->kv_block_bytes, 2 * kMiB);
  const int64_t left = 140 * kGiB - 15 * kGiB - plan->workspace.bytes - options.reserve_bytes;
  EXPECT_EQ(plan->kv_blocks, left / (2 * kMiB));
  EXPECT_GT(plan->kv_blocks, 60000);
}

TEST(DeviceMemory, Fp8HalvesTheCache) {
  DeviceModelOptions options;
  options.kv_is_fp8 = true;
  const auto plan = PlanDeviceMemory(Llama8B(), 15 * kGiB, options, 140 * kGiB);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->kv_block_bytes, kMiB);
}

TEST(DeviceMemory, WorkspacesDoNotOverlapAndAreAligned) {
  DeviceModelOptions options;
  options.max_sequences = 100;
  const DeviceWorkspace space = LayOutWorkspace(Llama8B(), options);
  EXPECT_EQ(space.slices, 128);
  EXPECT_EQ(space.tokens, 2048);
  const std::vector<std::pair<int64_t, int64_t>> arrays = {
      {space.residual, 2048 * 4096 * 4},
      {space.branch, 2048 * 4096 * 2},
      {space.logits, int64_t{128} * 128256 * 4},
      {space.normed, 2048 * 4096 * 2},
      {space.qkv, 2048 * 6144 * 2},
      {space.attended, 2048 * 4096 * 2},
      {space.gate_up, 2048 * 28672 * 2},
      {space.activated, 2048 * 14336 * 2},
      {space.last, 128 * 4096 * 2},
      {space.partial, int64_t{128} * 32 * space.max_splits * 130 * 4},
      {space.lists, int64_t{128} * 1024 * 3 * 4},
      {space.masks, int64_t{128} * 4008 * 4},
      {space.sampled, 128 * 8}};
  int64_t end = 0;
  for (const auto& [offset, bytes] : arrays) {
    EXPECT_EQ(offset % 256, 0);
    EXPECT_EQ(offset, end);
    end = (offset + bytes + 255) / 256 * 256;
  }
  EXPECT_EQ(space.inputs, end);
  EXPECT_GT(space.bytes, space.inputs);
  EXPECT_EQ(space.exchange_bytes, 0) << "nobody to exchange with";
}

// Ranks may have different shares of the FFN.
// A device may compute more tokens than there are, up to a multiple of four.
TEST(DeviceMemory, ProductsHaveRoomForAMultipleOfFourTokens) {
  DeviceModelOptions options;
  options.max_sequences = 16;
  for (const auto& [tokens, rows] : {std::pair{2000, 2000}, {2001, 2004}, {2003, 2004}}) {
    options.max_step_tokens = tokens;
    const DeviceWorkspace space = LayOutWorkspace(Llama8B(), options);
    EXPECT_EQ(space.tokens, tokens);
    EXPECT_EQ(space.product_rows, rows);
    EXPECT_EQ(space.logits - space.branch, int64_t{rows} * 4096 * 2);
    EXPECT_EQ(space.attended - space.qkv, int64_t{rows} * 6144 * 2);
    EXPECT_EQ(space.activated - space.gate_up, int64_t{rows} * 28672 * 2);
  }
}

TEST(DeviceMemory, WhatRanksExchangeLiesAlikeOnAll) {
  const DeviceModelOptions options;
  ModelConfig config = Llama8B();
  config.ffn += 8;
  const DeviceWorkspace first = LayOutWorkspace(config, options, {.rank = 0, .size = 4});
  EXPECT_GT(first.exchange_bytes, 0);
  for (const int64_t offset : {first.residual, first.branch, first.logits, first.all_logits}) {
    EXPECT_LT(offset, first.exchange_bytes);
  }
  EXPECT_GE(first.normed, first.exchange_bytes);
  bool is_uneven = false;
  for (int rank = 1; rank < 4; ++rank) {
    const DeviceWorkspace other = LayOutWorkspace(config, options, {.rank = rank, .size = 4});
    EXPECT_EQ(other.exchange_bytes, first.exchange_bytes);
    EXPECT_EQ(other.residual, first.residual);
    EXPECT_EQ(other.branch, first.branch);
    EXPECT_EQ(other.logits, first.logits);
    EXPECT_EQ(other.all_logits, first.all_logits);
    is_uneven |= other.bytes != first.bytes;
  }
  EXPECT_TRUE(is_uneven) << "the test shows nothing";
}

// Qwen 2.5 7B on four GPUs: 7 heads of 128 are three blocks and a half.
TEST(DeviceMemory, WhatAttentionPutsOutHasRoomForWholeBlocks) {
  ModelConfig config = Llama8B();
  config.heads = 28;
  config.kv_heads = 4;
  const DeviceModelOptions options;
  const int64_t leads[] = {0, 128, 0, 128};
  for (int rank = 0; rank < 4; ++rank) {
    const DeviceWorkspace space = LayOutWorkspace(config, options, {.rank = rank, .size = 4});
    EXPECT_EQ(space.attended_stride, 1024);
    EXPECT_EQ(space.attended_lead, leads[rank]);
    EXPECT_EQ(space.gate_up - space.attended, 2048 * 1024 * 2);
  }
  const DeviceWorkspace alone = LayOutWorkspace(config, options);
  EXPECT_EQ(alone.attended_stride, 3584);
  EXPECT_EQ(alone.attended_lead, 0);
}

TEST(DeviceMemory, SplitsCoverTheContextAndDoNotDependOnTheBatch) {
  for (const int64_t context : {1, 127, 128, 129, 8192, 8193, 131072}) {
    DeviceModelOptions options;
    options.context_length = context;
    const DeviceWorkspace space = LayOutWorkspace(Llama8B(), options);
    EXPECT_GE(space.split_tokens * space.max_splits, context);
    EXPECT_LE(space.max_splits, 64);
    EXPECT_EQ(space.split_tokens % 16, 0);
    options.max_sequences = 1;
    options.max_step_tokens = 64;
    EXPECT_EQ(LayOutWorkspace(Llama8B(), options).split_tokens, space.split_tokens);
  }
}

TEST(DeviceMemory, OneRowMayListAllTokensOfItsContext) {
  DeviceModelOptions options;
  options.max_sequences = 1;
  options.context_length = 100000;
  EXPECT_EQ(LayOutWorkspace(Llama8B(), options).listed, 100000 + 1024);
  options.context_length = 1000000;
  EXPECT_EQ(LayOutWorkspace(Llama8B(), options).listed, 128256 + 1024) << "the whole vocabulary";
}

TEST(DeviceMemory, EachSliceHasRoomForAMask) {
  DeviceModelOptions options;
  options.max_sequences = 200;
  const DeviceWorkspace space = LayOutWorkspace(Llama8B(), options);
  EXPECT_EQ(space.mask_words, 128256 / 32);
  // The next array begins behind those of 256 slices: 4 MiB in all.
  EXPECT_EQ(space.sampled - space.masks, 256 * 4 * (128256 / 32));
  ModelConfig odd = Llama8B();
  odd.vocabulary = 128257;
  EXPECT_EQ(LayOutWorkspace(odd, options).mask_words, 128256 / 32 + 1);
}

TEST(DeviceMemory, RefusesWithTheNumbers) {
  DeviceModelOptions options;
  options.context_length = 131072;  // 16 GiB of cache for one sequence
  const auto refused = PlanDeviceMemory(Llama8B(), 15 * kGiB, options, 24 * kGiB);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string message(refused.status().message());
  EXPECT_THAT(message, HasSubstr("the GPU has 24576 MiB free"));
  EXPECT_THAT(message, HasSubstr("15360 for weights"));
  EXPECT_THAT(message, HasSubstr("16384 for the KV cache of one sequence of 131072 tokens"));
  EXPECT_THAT(message, HasSubstr("engine.contextLength"));
}

TEST(DeviceMemory, ACacheThatIsTooSmallIsRefused) {
  DeviceModelOptions options;
  options.kv_bytes = 100 * kMiB;
  const auto refused = PlanDeviceMemory(Llama8B(), kGiB, options, 140 * kGiB);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("needs 1024 MiB"));
  options.kv_bytes = 200 * kGiB;
  EXPECT_EQ(PlanDeviceMemory(Llama8B(), kGiB, options, 140 * kGiB).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(DeviceMemory, GraphSizesArePowersOfTwo) {
  EXPECT_EQ(GraphSize(1), 1);
  EXPECT_EQ(GraphSize(2), 2);
  EXPECT_EQ(GraphSize(3), 4);
  EXPECT_EQ(GraphSize(129), 256);
}

TEST(DeviceMemory, ARankOfSeveralHasItsShareAndTheLogitsOfAll) {
  DeviceModelOptions options;
  options.max_sequences = 8;
  const DeviceWorkspace whole = LayOutWorkspace(Llama8B(), options);
  EXPECT_EQ(whole.vocabulary, 128256);
  EXPECT_EQ(whole.all_logits, whole.logits);
  const RankPosition of = {.rank = 3, .size = 4};
  const DeviceWorkspace space = LayOutWorkspace(Llama8B(), options, of);
  EXPECT_EQ(space.vocabulary, 32064);
  EXPECT_GE(space.all_logits - space.logits, 8 * 32064 * 4);
  EXPECT_GE(space.exchange_bytes - space.all_logits, 4 * 8 * 32064 * 4);
  // Queries, FFN and logits of a quarter; the residual whole.
  EXPECT_EQ(space.branch - space.residual, whole.branch - whole.residual);
  EXPECT_EQ(4 * (space.activated - space.gate_up), whole.activated - whole.gate_up);
  const auto plan = PlanDeviceMemory(Llama8B(), 4 * kGiB, options, 140 * kGiB, of);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kv_block_bytes, kMiB / 2);
  // More ranks than KV heads: each holds one whole, of eight.
  const auto many = PlanDeviceMemory(Llama8B(), kGiB, options, 140 * kGiB, {.rank = 9, .size = 16});
  ASSERT_TRUE(many.ok()) << many.status();
  EXPECT_EQ(many->kv_block_bytes, kMiB / 4);
}

TEST(DeviceMemory, PairsAreCutByWholeBlocksWhereTheyCanBe) {
  struct Row {
    int64_t ffn;
    int64_t vocabulary;
    int size;
    std::vector<int64_t> ffn_offsets;
    std::vector<int64_t> vocabulary_offsets;
  };
  for (const Row& row : {
           Row{14336, 128256, 4, {0, 3584, 7168, 10752, 14336}, {0, 32064, 64128, 96192, 128256}},
           Row{1536, 1000, 4, {0, 256, 768, 1024, 1536}, {0, 256, 512, 768, 1000}},
           Row{384, 32, 4, {0, 64, 192, 256, 384}, {0, 16, 32, 32, 32}},
           Row{40, 333, 2, {0, 16, 40}, {0, 176, 333}},
       }) {
    ModelConfig config = Llama8B();
    config.ffn = row.ffn;
    config.vocabulary = row.vocabulary;
    const Partition cut = MakePartition(config, {.rank = 0, .size = row.size}, MatrixCut::kPairs);
    EXPECT_EQ(cut.ffn, row.ffn_offsets);
    EXPECT_EQ(cut.vocabulary, row.vocabulary_offsets);
  }
}

}  // namespace
}  // namespace rempart::worker
