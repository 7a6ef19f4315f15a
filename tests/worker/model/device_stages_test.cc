// SPDX-License-Identifier: Apache-2.0
// A model whose layers are cut into stages, each computed by devices, is the model of one stage bit
// for bit: over emulated devices, whose ranks are threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/worker/comm/device_ranks.h"
#include "tests/worker/model/random_model.h"
#include "worker/comm/host_collectives.h"
#include "worker/model/device_transformer.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Shape {
  int tensor = 1;
  int stages = 1;
  int32_t micro_batch_tokens = 0;
  int size() const { return tensor * stages; }
};

DeviceModelOptions Options() {
  DeviceModelOptions options;
  options.context_length = 128;
  options.max_step_tokens = 64;
  options.max_sequences = 4;
  options.reserve_bytes = 0;
  options.kv_bytes = 4 << 20;
  return options;
}

// One rank: its device, its weights, and how it talks to others.
struct Rank {
  Rank() : device(kRankMemory), pool({.threads = 1}) {}

  absl::Status Load(const TensorMap& tensors, const ModelConfig& config, const RankPosition& of) {
    auto bound = BindWeights(tensors, config, kernels::BestOps(), {.pack = false}, pool, of,
                             MatrixCut::kPairs);
    if (!bound.ok()) return bound.status();
    weights = *std::move(bound);
    auto made = DeviceTransformer::Create(device, config, weights, Options());
    if (!made.ok()) return made.status();
    transformer = *std::move(made);
    return absl::OkStatus();
  }
  // In a new epoch.
  absl::Status Join(Communicator& group, int tensor) {
    Leave();
    transformer->SetGroup(&group);
    if (tensor == 1) return absl::OkStatus();
    Communicator* mine = &group;
    if (group.size() > tensor) {
      stage = group.Part(group.rank() / tensor * tensor, tensor);
      mine = stage.get();
    }
    HostCollectives library;
    auto made = library.Connect(device, {"", mine}, {}, {});
    if (!made.ok()) return made.status();
    communicator = *std::move(made);
    transformer->SetCommunicator(communicator.get());
    return absl::OkStatus();
  }
  void Leave() {
    transformer->SetCommunicator(nullptr);
    transformer->SetGroup(nullptr);
    communicator.reset();
    stage.reset();
  }

  EmulatedDevice device;
  ThreadPool pool;
  Weights weights;
  std::unique_ptr<DeviceTransformer> transformer;
  std::unique_ptr<Communicator> stage;
  std::unique_ptr<DeviceCommunicator> communicator;
};
using Ranks = std::vector<std::unique_ptr<Rank>>;

Ranks MakeRanks(const TensorMap& tensors, const ModelConfig& config, const Shape& shape) {
  Ranks ranks;
  for (int rank = 0; rank < shape.size(); ++rank) {
    ranks.push_back(std::make_unique<Rank>());
    const absl::Status loaded =
        ranks.back()->Load(tensors, config, PositionOf(rank, shape.tensor, shape.stages));
    EXPECT_TRUE(loaded.ok()) << loaded;
  }
  return ranks;
}

struct Ids {
  std::vector<int32_t> tokens;
  int32_t first_position;
  std::vector<int32_t> table;
  bool wants_logits;
};
using Step = std::vector<Ids>;

// Prefill, cut prefill beside another sequence, a step that wants nothing, a mixed step, and
// decodes, of which the last two start a graph again.
std::vector<Step> Steps(int64_t vocabulary) {
  const auto tokens = [&](int count, int seed) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back((seed + 37 * i) % static_cast<int>(vocabulary));
    return ids;
  };
  std::vector<Step> steps = {{{tokens(19, 3), 0, {5, 2}, true}},
                             {{tokens(7, 11), 0, {9}, false}, {tokens(1, 8), 19, {5, 2}, true}},
                             {{tokens(20, 5), 7, {9, 1}, false}},
                             {{tokens(1, 1), 27, {9, 1}, true},
                              {tokens(1, 2), 20, {5, 2}, true},
                              {tokens(33, 9), 0, {3, 4, 6}, true}}};
  for (int i = 0; i < 3; ++i) {
    steps.push_back({{tokens(1, 4 + i), 28 + i, {9, 1}, true},
                     {tokens(1, 6 + i), 21 + i, {5, 2}, true},
                     {tokens(1, 8 + i), 33 + i, {3, 4, 6}, true}});
  }
  return steps;
}

StepBatch BatchOf(const Step& step, int32_t micro_batch_tokens) {
  StepBatch batch;
  batch.micro_batch_tokens = micro_batch_tokens;
  for (const Ids& ids : step) {
    batch.slices.push_back({ids.tokens, ids.first_position, ids.table, ids.wants_logits});
  }
  return batch;
}

// Logits of all steps, one after the other.
std::vector<float> Compute(DeviceTransformer& transformer, bool is_first, const Shape& shape) {
  const int64_t vocabulary = transformer.config().vocabulary;
  std::vector<float> all;
  for (const Step& step : Steps(vocabulary)) {
    const StepBatch batch = BatchOf(step, shape.micro_batch_tokens);
    int64_t wanting = 0;
    for (const SequenceSlice& slice : batch.slices) wanting += slice.wants_logits ? 1 : 0;
    std::vector<float> logits(is_first ? wanting * vocabulary : 0);
    const absl::Status status = transformer.Forward(batch, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

void OnEach(Ranks& ranks, const std::function<void(int rank)>& body) {
  std::vector<std::jthread> threads;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    threads.emplace_back([&body, rank] { body(static_cast<int>(rank)); });
  }
}

std::vector<float> ComputeInEpoch(Ranks& ranks, const Shape& shape) {
  const auto hosts = CreateInProcess(shape.size(), {});
  std::vector<float> logits;
  OnEach(ranks, [&](int rank) {
    const absl::Status joined = ranks[rank]->Join(*hosts[rank], shape.tensor);
    EXPECT_TRUE(joined.ok()) << joined;
    std::vector<float> own = Compute(*ranks[rank]->transformer, rank == 0, shape);
    if (rank == 0) logits = std::move(own);
  });
  for (const auto& rank : ranks) rank->Leave();
  return logits;
}

void ExpectSameInStages(const TensorMap& tensors, const ModelConfig& config,
                        const std::vector<Shape>& shapes) {
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << shape.tensor << " ranks, " << shape.stages << " stages, "
                                    << shape.micro_batch_tokens << " tokens at once");
    const Shape one = {shape.tensor, 1, shape.micro_batch_tokens};
    Ranks alone = MakeRanks(tensors, config, one), staged = MakeRanks(tensors, config, shape);
    ASSERT_FALSE(testing::Test::HasFailure());
    const std::vector<float> expected = ComputeInEpoch(alone, one);
    ASSERT_EQ(expected.size(), static_cast<size_t>(14 * config.vocabulary));
    EXPECT_EQ(ComputeInEpoch(staged, shape), expected);
  }
}

ModelConfig Small(int layers) { return UnlikeLayers(SmallConfig(4, 2, 32, 64, 256, 131), layers); }

TEST(DeviceStages, ComputeWhatOneStageDoes) {
  const RandomModel model(Small(5), kernels::DType::kQ8_0, 11);
  ExpectSameInStages(model.tensors(), model.config(), {{1, 2}, {1, 3}, {1, 5}});
}

TEST(DeviceStages, OfSeveralRanksEachComputeWhatOneStageDoes) {
  ModelConfig config = Small(3);
  config.qk_norm = config.post_norms = config.qkv_bias = true;
  config.logit_softcap = 30.0f;
  config.embedding_scale = 8.0f;
  const RandomModel model(config, kernels::DType::kQ8_0, 12);
  ExpectSameInStages(model.tensors(), config, {{2, 2}, {2, 3, 16}});
}

TEST(DeviceStages, MicroBatchesPassThemWhereverTheyCut) {
  const RandomModel model(Small(3), kernels::DType::kF32, 13);
  ExpectSameInStages(model.tensors(), model.config(), {{1, 2, 1}, {1, 2, 7}, {1, 3, 19}});
}

TEST(DeviceStages, AnEmbeddingThatIsTheHeadAsWellIsHeldByBothEnds) {
  const ModelConfig config = Small(3);
  const RandomModel model(config, kernels::DType::kQ8_0, 14);
  TensorMap tensors = model.tensors();
  tensors.erase("output.weight");
  ExpectSameInStages(tensors, config, {{1, 2}, {2, 3}});
  const Ranks ranks = MakeRanks(tensors, config, {1, 3});
  EXPECT_EQ(ranks[0]->weights.embedding.view.data, ranks[2]->weights.head.view.data);
  EXPECT_EQ(ranks[1]->weights.embedding.view.data, nullptr);
  EXPECT_EQ(ranks[1]->weights.head.view.data, nullptr);
}

TEST(DeviceStages, HoldTheirLayersAlone) {
  const ModelConfig config = Small(6);
  const RandomModel model(config, kernels::DType::kQ8_0, 15);
  const Ranks one = MakeRanks(model.tensors(), config, {1, 1});
  const Ranks three = MakeRanks(model.tensors(), config, {1, 3});
  const DeviceMemoryPlan& whole = one[0]->transformer->plan();
  int64_t weights = 0, kv = 0, read = 0;
  for (const auto& rank : three) {
    const DeviceMemoryPlan& plan = rank->transformer->plan();
    weights += plan.weights_bytes;
    kv += plan.kv_block_bytes;
    read += rank->weights.bytes_read;
    EXPECT_GT(plan.kv_blocks, whole.kv_blocks);
  }
  EXPECT_EQ(kv, whole.kv_block_bytes);
  EXPECT_EQ(read, one[0]->weights.bytes_read) << "nothing is read twice";
  // Each has the frequencies of the ropes.
  EXPECT_EQ(weights, whole.weights_bytes + 2 * 2 * 256);
  // Logits are of the last stage.
  EXPECT_LT(three[0]->transformer->plan().workspace.bytes, whole.workspace.bytes);
  EXPECT_EQ(three[2]->transformer->plan().workspace.bytes, whole.workspace.bytes);
}

// On GPUs the embedding takes memory, too.
TEST(DeviceStages, AreCutByWhatTheirEndsHold) {
  ModelConfig config = SmallConfig(32, 8, 128, 4096, 14336, 128256);  // Llama 3.1 8B
  config.layers.resize(32);
  EXPECT_THAT(CutLayers(config, 2, MatrixCut::kPairs), ElementsAre(0, 16, 32));
  EXPECT_THAT(CutLayers(config, 4, MatrixCut::kPairs), ElementsAre(0, 7, 16, 25, 32));
  // Gemma 3 270M: each end weighs more than all layers together.
  config = SmallConfig(4, 1, 256, 640, 2048, 262144);
  config.layers.resize(18);
  EXPECT_THAT(CutLayers(config, 2, MatrixCut::kPairs), ElementsAre(0, 9, 18));
  EXPECT_THAT(CutLayers(config, 3, MatrixCut::kPairs), ElementsAre(0, 1, 17, 18));
}

TEST(DeviceStages, DoNotComputeWithoutTheirGroup) {
  const RandomModel model(Small(3), kernels::DType::kQ8_0, 16);
  const Ranks ranks = MakeRanks(model.tensors(), model.config(), {1, 3});
  const std::vector<Step> steps = Steps(131);
  const auto others = CreateInProcess(2, {});
  std::vector<float> logits(131);
  for (Communicator* group : {static_cast<Communicator*>(nullptr), others[0].get()}) {
    ranks[0]->transformer->SetGroup(group);
    const absl::Status refused =
        ranks[0]->transformer->Forward(BatchOf(steps[0], 0), absl::MakeSpan(logits));
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("rank 0 of 3 has no communicator"));
  }
  std::vector<int32_t> tokens;
  const std::vector<int32_t> table = {1};
  const std::vector<DecodeSequence> sequences = {{1, 0, table, {}}};
  EXPECT_EQ(ranks[0]->transformer->DecodeMany(sequences, 1, &tokens).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(DeviceStages, ALostStageFailsTheStepOfAllAndANewEpochComputesAgain) {
  const Shape shape = {2, 3, 8};
  const RandomModel model(Small(3), kernels::DType::kQ8_0, 17);
  Ranks ranks = MakeRanks(model.tensors(), model.config(), shape);
  const std::vector<Step> steps = Steps(131);
  {
    const auto hosts = CreateInProcess(shape.size(), {});
    std::vector<absl::Status> lost(shape.size());
    OnEach(ranks,
           [&](int rank) { EXPECT_TRUE(ranks[rank]->Join(*hosts[rank], shape.tensor).ok()); });
    OnEach(ranks, [&](int rank) {
      if (rank == 3) return hosts[rank]->Abort(absl::UnavailableError("rank 3 ends"), 3);
      std::vector<float> room(rank == 0 ? 131 : 0);
      // A stage before the lost one may have handed its part on.
      for (int i = 0; i < 50 && lost[rank].ok(); ++i) {
        lost[rank] = ranks[rank]->transformer->Forward(BatchOf(steps[0], 8), absl::MakeSpan(room));
      }
    });
    for (int rank = 0; rank < shape.size(); ++rank) {
      if (rank == 3) continue;
      EXPECT_FALSE(lost[rank].ok()) << "rank " << rank;
      EXPECT_EQ(hosts[rank]->progress().blamed_rank, 3);
    }
    for (const auto& rank : ranks) rank->Leave();
  }
  const Shape one = {2, 1, 8};
  Ranks alone = MakeRanks(model.tensors(), model.config(), one);
  EXPECT_EQ(ComputeInEpoch(ranks, shape), ComputeInEpoch(alone, one));
}

}  // namespace
}  // namespace rempart::worker
