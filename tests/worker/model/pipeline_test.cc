// SPDX-License-Identifier: Apache-2.0
// A model whose layers are cut into stages is the model computed by one rank, bit for bit, however
// its steps are cut into micro-batches.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/model/rank_group.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Pipeline, StoriesIsTheSameInAnyNumberOfStages) {
  const auto source = OpenModel("tests/goldens/stories/stories260K.f32.gguf");
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ(source->config.layers.size(), 5u);
  ExpectSameOnAllShapes(source->tensors, source->config,
                        {{1, 2}, {1, 3}, {1, 5}, {2, 2}, {1, 2, 8}});
}

TEST(Pipeline, WholeFamiliesAreTheSameInStages) {
  for (const char* family : {"gemma3", "llama_tied", "qwen3"}) {
    SCOPED_TRACE(family);
    auto source = OpenModel(std::string("tests/goldens/families/") + family);
    ASSERT_TRUE(source.ok()) << source.status();
    ExpectSameOnAllShapes(source->tensors, source->config, {{1, 2, 16}});
  }
}

TEST(Pipeline, ManyKindsOfLayersInStagesOfSeveralRanks) {
  ModelConfig config = UnlikeLayers(SmallConfig(4, 2, 32, 64, 96, 131), 4);
  config.qk_norm = config.post_norms = config.qkv_bias = true;
  config.logit_softcap = 30.0f;
  const RandomModel model(config, kernels::DType::kQ8_0, 11);
  ExpectSameOnAllShapes(model.tensors(), config, {{1, 2}, {1, 3}, {2, 2}, {4, 2, 16}, {2, 4}});
}

TEST(Pipeline, AnEmbeddingThatIsTheHeadAsWellIsReadByBothEnds) {
  const ModelConfig config = UnlikeLayers(SmallConfig(2, 1, 32, 64, 64, 90), 3);
  const RandomModel model(config, kernels::DType::kQ4_1, 12);
  TensorMap tensors = model.tensors();
  tensors.erase("output.weight");
  ExpectSameOnAllShapes(tensors, config, {{1, 2}, {1, 3, 4}, {2, 3}});
}

TEST(Pipeline, MicroBatchesChangeNothingWhereverTheyCut) {
  const ModelConfig config = UnlikeLayers(SmallConfig(6, 2, 8, 40, 52, 77), 3);
  const RandomModel model(config, kernels::DType::kF32, 13);
  ExpectSameOnAllShapes(
      model.tensors(), config,
      {{1, 1, 5}, {1, 2, 1}, {1, 2, 7}, {1, 3, 19}, {1, 3, 64}, {2, 2, 10}, {1, 2, 1000}});
}

TEST(MicroBatches, AreRunsOfTokensThatMayCutASlice) {
  const std::vector<int32_t> ids = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, table = {3};
  StepBatch batch;
  batch.copies = {{1, 2}};
  batch.slices = {{absl::MakeConstSpan(ids).subspan(0, 3), 40, table, true},
                  {absl::MakeConstSpan(ids).subspan(3, 6), 5, table, true},
                  {absl::MakeConstSpan(ids).subspan(9, 1), 0, table, false}};
  batch.micro_batch_tokens = 4;
  const std::vector<StepBatch> parts = MicroBatches(batch);
  ASSERT_EQ(parts.size(), 3u);
  for (const StepBatch& part : parts) EXPECT_TRUE(part.copies.empty());
  ASSERT_EQ(parts[0].slices.size(), 2u);
  EXPECT_EQ(parts[0].slices[0].first_position, 40);
  EXPECT_TRUE(parts[0].slices[0].wants_logits);
  EXPECT_THAT(parts[0].slices[1].token_ids, ElementsAre(3));
  EXPECT_FALSE(parts[0].slices[1].wants_logits);
  ASSERT_EQ(parts[1].slices.size(), 1u);
  EXPECT_EQ(parts[1].slices[0].first_position, 6);
  EXPECT_THAT(parts[1].slices[0].token_ids, ElementsAre(4, 5, 6, 7));
  ASSERT_EQ(parts[2].slices.size(), 2u);
  EXPECT_THAT(parts[2].slices[0].token_ids, ElementsAre(8));
  EXPECT_TRUE(parts[2].slices[0].wants_logits);
  EXPECT_FALSE(parts[2].slices[1].wants_logits);
  batch.micro_batch_tokens = 0;
  EXPECT_EQ(MicroBatches(batch).size(), 1u);
}

ModelConfig Shaped(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t hidden, int64_t ffn,
                   int64_t vocabulary, int layers) {
  ModelConfig config = SmallConfig(heads, kv_heads, head_dim, hidden, ffn, vocabulary);
  config.layers.resize(layers);
  return config;
}

TEST(Stages, HoldLayersByTheWeightsThatTheyAreBesideTheHead) {
  // Llama 3.1 8B: the head weighs two and a half of its 32 layers.
  const ModelConfig llama = Shaped(32, 8, 128, 4096, 14336, 128256, 32);
  EXPECT_THAT(CutLayers(llama, 1), ElementsAre(0, 32));
  EXPECT_THAT(CutLayers(llama, 2), ElementsAre(0, 17, 32));
  EXPECT_THAT(CutLayers(llama, 4), ElementsAre(0, 8, 17, 26, 32));
  // SmolLM2 135M: eight of 30.
  EXPECT_THAT(CutLayers(Shaped(9, 3, 64, 576, 1536, 49152, 30), 2), ElementsAre(0, 19, 30));
  // Gemma 3 270M: more than all layers together.
  EXPECT_THAT(CutLayers(Shaped(4, 1, 256, 640, 2048, 262144, 18), 2), ElementsAre(0, 17, 18));
  for (const int layers : {2, 3, 7, 30, 80}) {
    const ModelConfig config = Shaped(8, 8, 64, 512, 1376, 32000, layers);
    for (int stages = 1; stages <= layers; ++stages) {
      const std::vector<int64_t> offsets = CutLayers(config, stages);
      ASSERT_EQ(offsets.size(), static_cast<size_t>(stages) + 1);
      EXPECT_EQ(offsets.front(), 0);
      EXPECT_EQ(offsets.back(), layers);
      for (int stage = 0; stage < stages; ++stage) EXPECT_LT(offsets[stage], offsets[stage + 1]);
    }
  }
}

TEST(Stages, AreNoMoreThanLayers) {
  const ModelConfig config = Shaped(9, 3, 64, 576, 1536, 49152, 30);
  EXPECT_TRUE(CheckPipelineParallel(config, 30).ok());
  EXPECT_EQ(CheckPipelineParallel(config, 31).message(),
            "parallelism.pipeline is 31, but the model has 30 layers: set at most 30");
  EXPECT_FALSE(CheckPipelineParallel(config, 0).ok());
  const RandomModel model(SmallConfig(6, 2, 8, 40, 52, 77), kernels::DType::kF32, 6);
  ThreadPool pool({.threads = 1});
  const auto refused = BindWeights(model.tensors(), model.config(), kernels::BestOps(),
                                   {.pack = false}, pool, {0, 1, 0, 3});
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("set at most 2"));
}

TEST(Stages, ReadTheirLayersAloneAndHoldTheirKv) {
  const ModelConfig config = Shaped(9, 3, 32, 192, 384, 320, 6);
  const RandomModel model(config, kernels::DType::kQ8_0, 5);
  ThreadPool pool({.threads = 1});
  const auto bind = [&](const RankPosition& of) {
    auto weights =
        BindWeights(model.tensors(), config, kernels::BestOps(), {.pack = false}, pool, of);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  };
  const int64_t whole = bind({}).bytes_read;
  int64_t sum = 0;
  int64_t kv = 0;
  for (int stage = 0; stage < 3; ++stage) {
    const RankPosition of = {0, 1, stage, 3};
    const Weights weights = bind(of);
    EXPECT_EQ(weights.layers.size(), 2u);
    EXPECT_EQ(weights.embedding.view.rows, stage == 0 ? config.vocabulary : 0);
    EXPECT_EQ(weights.head.view.rows, stage == 2 ? config.vocabulary : 0);
    EXPECT_LT(weights.bytes_read, whole / 2);
    sum += weights.bytes_read;
    kv += KvBytesPerBlock(config, kernels::DType::kF16, of);
  }
  EXPECT_EQ(sum, whole) << "nothing is read twice";
  EXPECT_EQ(kv, KvBytesPerBlock(config, kernels::DType::kF16));
}

TEST(Stages, ATensorOfNoKnownUseIsRefusedInEveryStage) {
  const RandomModel model(SmallConfig(6, 2, 8, 40, 52, 77), kernels::DType::kF32, 6);
  TensorMap tensors = model.tensors();
  tensors["blk.2.attn_q.weight"] = tensors["blk.1.attn_q.weight"];
  ThreadPool pool({.threads = 1});
  for (int stage = 0; stage < 2; ++stage) {
    const auto refused = BindWeights(tensors, model.config(), kernels::BestOps(), {.pack = false},
                                     pool, {0, 1, stage, 2});
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("blk.2.attn_q.weight"));
  }
}

TEST(Pipeline, ALostStageFailsTheStepAndANewCommunicatorServesTheNext) {
  const RandomModel model(UnlikeLayers(SmallConfig(4, 2, 32, 64, 96, 64), 3), kernels::DType::kQ8_0,
                          7);
  const auto ranks = MakeRanks(model.tensors(), model.config(), false, {1, 3, 8});
  const std::vector<Step> steps = Steps(64);
  std::vector<float> logits(64);
  EXPECT_EQ(ranks[0]->transformer->Forward(BatchOf(steps[0]), absl::MakeSpan(logits)).code(),
            absl::StatusCode::kFailedPrecondition);
  {
    Group group = CreateInProcess(3, {});
    group[2].reset();
    std::vector<absl::Status> lost(2);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        Transformer& transformer = *ranks[rank]->transformer;
        transformer.SetCommunicator(group[rank].get());
        std::vector<float> room(rank == 0 ? 64 : 0);
        lost[rank] = transformer.Forward(BatchOf(steps[0]), absl::MakeSpan(room));
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_FALSE(lost[rank].ok());
      EXPECT_EQ(group[rank]->progress().blamed_rank, 2);
    }
  }
  Group group = CreateInProcess(3, {});
  Rank alone(model.tensors(), model.config(), kernels::BestOps(), false, {});
  std::vector<float> after;
  OnAllRanks(group, [&](Communicator& communicator) {
    Transformer& transformer = *ranks[communicator.rank()]->transformer;
    transformer.SetCommunicator(&communicator);
    std::vector<float> own = Compute(transformer, steps, communicator.rank(), 8);
    if (communicator.rank() == 0) after = std::move(own);
  });
  EXPECT_EQ(after, Compute(*alone.transformer, steps, 0));
}

}  // namespace
}  // namespace rempart::worker
