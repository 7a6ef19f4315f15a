// SPDX-License-Identifier: Apache-2.0
// A model computed by several devices is the model computed by one, as far as BF16 sums allow: over
// emulated devices, whose ranks are threads and talk through the host's collectives or through the
// NCCL communicator over a library made for tests.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/worker/comm/device_ranks.h"
#include "tests/worker/model/device_part.h"
#include "tests/worker/model/relative_error.h"
#include "worker/comm/host_collectives.h"
#include "worker/comm/nccl_library.h"
#include "worker/comm/one_shot.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr int kDecodes = 3;
constexpr size_t kSampled = 3;

// What a rank computes: prompts in chunks beside decodes, decodes of given tokens through the host,
// then decodes that stay on the device and take the tokens that these sample.
struct Outcome {
  std::vector<float> logits;       // of every row that was wanted, of given tokens; rank 0 alone
  std::vector<int32_t> on_device;  // [kSampled, 2]
  std::vector<int32_t> by_host;    // the same from logits, after the tokens of on_device; rank 0
  std::vector<int32_t> drawn;      // the same, drawn in a step of its own; rank 0
};

void Forward(DeviceTransformer& transformer, const StepBatch& batch, bool is_first,
             std::vector<float>& all) {
  int64_t wanting = 0;
  for (const SequenceSlice& slice : batch.slices) wanting += slice.wants_logits ? 1 : 0;
  std::vector<float> logits(is_first ? wanting * transformer.config().vocabulary : 0);
  const absl::Status status = transformer.Forward(batch, absl::MakeSpan(logits));
  ASSERT_TRUE(status.ok()) << status;
  all.insert(all.end(), logits.begin(), logits.end());
}

// The first largest of each row.
std::vector<int32_t> Best(const std::vector<float>& logits, int64_t vocabulary) {
  std::vector<int32_t> best;
  for (auto row = logits.begin(); row != logits.end(); row += vocabulary) {
    best.push_back(static_cast<int32_t>(std::max_element(row, row + vocabulary) - row));
  }
  return best;
}

Outcome Compute(DeviceTransformer& transformer, bool is_first) {
  Outcome outcome;
  const int64_t vocabulary = transformer.config().vocabulary;
  const std::vector<std::vector<int32_t>> tables = {Table(0), Table(1)};
  std::vector<int32_t> ids[2];
  for (int i = 0; i < 48; ++i) {
    ids[0].push_back(static_cast<int32_t>((i * 37 + 11) % vocabulary));
    ids[1].push_back(static_cast<int32_t>((i * 53 + 5) % vocabulary));
  }
  const absl::Span<const int32_t> a(ids[0]), b(ids[1]);
  StepBatch first, second;
  first.slices = {{a.subspan(0, 23), 0, tables[0], false}, {b.subspan(0, 9), 0, tables[1], true}};
  Forward(transformer, first, is_first, outcome.logits);
  second.slices = {{a.subspan(23, 12), 23, tables[0], true}, {b.subspan(9, 1), 9, tables[1], true}};
  Forward(transformer, second, is_first, outcome.logits);
  int32_t positions[] = {35, 10};
  for (int step = 0; step < kDecodes; ++step) {
    StepBatch batch;
    for (int i = 0; i < 2; ++i) {
      batch.slices.push_back(
          {absl::MakeSpan(ids[i]).subspan(positions[i], 1), positions[i], tables[i], true});
      ++positions[i];
    }
    Forward(transformer, batch, is_first, outcome.logits);
  }
  std::vector<int32_t> last = {ids[0][positions[0]], ids[1][positions[1]]};
  const std::vector<DecodeSequence> sequences = {{last[0], positions[0], tables[0], {}},
                                                 {last[1], positions[1], tables[1], {}}};
  const absl::Status decoded = transformer.DecodeMany(sequences, kSampled, &outcome.on_device);
  EXPECT_TRUE(decoded.ok()) << decoded;
  for (size_t step = 0; decoded.ok() && step < kSampled; ++step) {
    StepBatch batch;
    for (int i = 0; i < 2; ++i) {
      batch.slices.push_back({{&last[i], 1}, positions[i]++, tables[i], true});
    }
    std::vector<float> logits;
    Forward(transformer, batch, is_first, logits);
    for (const int32_t best : Best(logits, vocabulary)) outcome.by_host.push_back(best);
    const SamplingParams greedy{.temperature = 0};
    const SliceSampling sampling = {&greedy, {}, 0};
    for (SequenceSlice& slice : batch.slices) slice.sampling = &sampling;
    std::vector<DrawnToken> drawn(is_first ? 2 : 0);
    EXPECT_TRUE(transformer.Forward(batch, absl::MakeSpan(logits), absl::MakeSpan(drawn)).ok());
    for (const DrawnToken& each : drawn) {
      EXPECT_TRUE(each.is_drawn);
      outcome.drawn.push_back(each.token_id);
    }
    last = {outcome.on_device[2 * step], outcome.on_device[2 * step + 1]};
  }
  return outcome;
}

Outcome ComputeAlone(const RandomModel& model) {
  EmulatedDevice device(kRankMemory);
  Part part;
  const absl::Status loaded = Load(model, {}, device, part);
  EXPECT_TRUE(loaded.ok()) << loaded;
  if (!loaded.ok()) return {};
  return Compute(*part.transformer, true);
}

std::vector<Outcome> ComputeTogether(const RandomModel& model, int size,
                                     CollectiveLibrary& library) {
  DeviceRanks ranks(library, size, size, {});
  EXPECT_TRUE(ranks.all_connected());
  std::vector<Outcome> outcomes(size);
  if (!ranks.all_connected()) return outcomes;
  std::vector<Part> parts(size);
  for (int rank = 0; rank < size; ++rank) {
    const absl::Status loaded =
        Load(model, {.rank = rank, .size = size}, *ranks[rank].device, parts[rank]);
    EXPECT_TRUE(loaded.ok()) << loaded;
    if (!loaded.ok()) return outcomes;
    parts[rank].transformer->SetCommunicator(ranks[rank].communicator.get());
  }
  ranks.OnEach([&](int rank) {
    outcomes[rank] = Compute(*parts[rank].transformer, rank == 0);
    parts[rank].transformer->SetCommunicator(nullptr);
  });
  return outcomes;
}

struct Case {
  const char* name;
  int size;
  kernels::DType type;
  ModelConfig config;
};

ModelConfig Gemma() {
  ModelConfig config = SmallConfig(2, 1, 64, 128, 256, 333);
  config.qk_norm = config.post_norms = true;
  config.embedding_scale = 11.0f;
  config.logit_softcap = 20.0f;
  config.attention_softcap = 30.0f;
  config.activation = Activation::kGeluTanh;
  config.layers[1].window = 17;
  return config;
}

ModelConfig Qwen() {
  ModelConfig config = SmallConfig(6, 3, 32, 96, 192, 200);
  config.qkv_bias = true;
  return config;
}

std::vector<Case> Cases() {
  using kernels::DType;
  return {
      {"llama_on_2", 2, DType::kQ8_0, SmallConfig(4, 2, 64, 128, 256, 333)},
      {"more_ranks_than_kv_heads", 4, DType::kQ8_0, SmallConfig(4, 2, 64, 128, 256, 333)},
      {"k_quants_on_2", 2, DType::kQ6_K, SmallConfig(4, 2, 128, 256, 512, 160)},
      {"blocks_cut_by_heads_on_4", 4, DType::kQ6_K, SmallConfig(12, 4, 64, 256, 1024, 160)},
      {"gemma_on_2", 2, DType::kF32, Gemma()},
      {"three_kv_heads_on_3", 3, DType::kF32, Qwen()},
      {"a_rank_without_vocabulary", 3, DType::kF32, SmallConfig(3, 3, 32, 96, 192, 32)},
  };
}

class DeviceRankCases : public testing::TestWithParam<Case> {};

// How far the best logit of a row leads, in units of the row's deviation from its mean.
double Lead(absl::Span<const float> row) {
  std::vector<float> sorted(row.begin(), row.end());
  std::sort(sorted.rbegin(), sorted.rend());
  double mean = 0, square = 0;
  for (const float logit : row) mean += logit;
  mean /= static_cast<double>(row.size());
  for (const float logit : row) square += (logit - mean) * (logit - mean);
  return (sorted[0] - sorted[1]) / std::sqrt(square / static_cast<double>(row.size()));
}

// Partial sums are rounded to BF16 before they are added up, once more than one rank's: that
// changes logits by about as much as all other rounding here, and a token only where two are that
// close.
void ExpectTheTokensOfOne(const Case& chosen, CollectiveLibrary& library) {
  constexpr double kRounding = 0.02;
  const int64_t vocabulary = chosen.config.vocabulary;
  const RandomModel model(chosen.config, chosen.type, 7);
  const Outcome alone = ComputeAlone(model);
  const std::vector<Outcome> together = ComputeTogether(model, chosen.size, library);
  ASSERT_EQ(alone.logits.size(), (3u + 2 * kDecodes) * vocabulary);
  ASSERT_EQ(together[0].logits.size(), alone.logits.size());
  EXPECT_LT(RelativeError(together[0].logits, alone.logits), kRounding);
  const std::vector<int32_t> expected = Best(alone.logits, vocabulary);
  const std::vector<int32_t> actual = Best(together[0].logits, vocabulary);
  int clear = 0;
  for (size_t row = 0; row < expected.size(); ++row) {
    const auto logits = absl::MakeSpan(alone.logits).subspan(row * vocabulary, vocabulary);
    if (Lead(logits) < 4 * kRounding) continue;
    ++clear;
    EXPECT_EQ(actual[row], expected[row]) << "row " << row;
  }
  EXPECT_GE(clear, static_cast<int>(expected.size()) / 2);
  // What is sampled on the devices is the same on all, and what the host takes from the logits.
  ASSERT_EQ(together[0].on_device.size(), 2u * kSampled);
  EXPECT_EQ(together[0].by_host, together[0].on_device);
  EXPECT_EQ(together[0].drawn, together[0].by_host);
  for (const Outcome& outcome : together) EXPECT_EQ(outcome.on_device, together[0].on_device);
}

TEST_P(DeviceRankCases, ComputeTheTokensOfOne) {
  HostCollectives host;
  ExpectTheTokensOfOne(GetParam(), host);
}

// Decodes, which are recorded, sum in one shot throughout; the largest steps of prompts do not.
TEST_P(DeviceRankCases, ComputeTheTokensOfOneWithSumsInOneShot) {
  OneShotOptions options;
  options.use = OneShotUse::kAlways;
  options.buffer_bytes = 20 * GetParam().config.hidden * 2;
  options.measure_time = std::chrono::milliseconds(0);
  OneShot library(std::make_unique<HostCollectives>(), options);
  ExpectTheTokensOfOne(GetParam(), library);
}

INSTANTIATE_TEST_SUITE_P(All, DeviceRankCases, testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(DeviceRanksTest, NcclGivesWhatTheHostsCollectivesGive) {
  const Case chosen = Cases()[0];
  const RandomModel model(chosen.config, chosen.type, 7);
  HostCollectives host;
  auto nccl = Nccl::Load(REMPART_FAKE_NCCL);
  ASSERT_TRUE(nccl.ok()) << nccl.status();
  const std::vector<Outcome> expected = ComputeTogether(model, 2, host);
  const std::vector<Outcome> actual = ComputeTogether(model, 2, **nccl);
  EXPECT_EQ(actual[0].logits, expected[0].logits);
  EXPECT_EQ(actual[0].by_host, expected[0].by_host);
  EXPECT_EQ(actual[0].drawn, actual[0].by_host);
  EXPECT_EQ(actual[1].on_device, expected[1].on_device);
}

// Of two ranks there is one order.
TEST(DeviceRanksTest, SumsInOneShotGiveTheSameBits) {
  const Case chosen = Cases()[0];
  const RandomModel model(chosen.config, chosen.type, 7);
  HostCollectives host;
  OneShotOptions options;
  options.use = OneShotUse::kAlways;
  options.measure_time = std::chrono::milliseconds(0);
  OneShot one_shot(std::make_unique<HostCollectives>(), options);
  const std::vector<Outcome> expected = ComputeTogether(model, 2, host);
  const std::vector<Outcome> actual = ComputeTogether(model, 2, one_shot);
  EXPECT_EQ(actual[0].logits, expected[0].logits);
  EXPECT_EQ(actual[0].by_host, expected[0].by_host);
  EXPECT_EQ(actual[0].drawn, actual[0].by_host);
  EXPECT_EQ(actual[1].on_device, expected[1].on_device);
}

// Half of the heads, of the FFN and of the vocabulary; all of the norms.
TEST(DeviceRanksTest, EachHoldsItsShareAlone) {
  const ModelConfig config = SmallConfig(4, 2, 64, 128, 256, 320);
  const RandomModel model(config, kernels::DType::kQ8_0, 7);
  EmulatedDevice whole(kRankMemory), half(kRankMemory);
  Part of_one, of_two;
  ASSERT_TRUE(Load(model, {}, whole, of_one).ok());
  ASSERT_TRUE(Load(model, {.rank = 1, .size = 2}, half, of_two).ok());
  EXPECT_EQ(of_two.weights.partition.kv_heads.count(), 1);
  const DeviceMemoryPlan &one = of_one.transformer->plan(), &two = of_two.transformer->plan();
  EXPECT_EQ(two.kv_block_bytes * 2, one.kv_block_bytes);
  EXPECT_EQ(two.workspace.vocabulary, 160);
  EXPECT_LT(two.workspace.bytes, one.workspace.bytes);
  EXPECT_LT(static_cast<double>(two.weights_bytes), 0.53 * static_cast<double>(one.weights_bytes));
  int64_t file_bytes = 0;
  for (const auto& [name, tensor] : model.tensors()) file_bytes += tensor.bytes;
  EXPECT_EQ(of_one.weights.bytes_read, file_bytes);
  EXPECT_LT(static_cast<double>(of_two.weights.bytes_read), 0.53 * static_cast<double>(file_bytes));
}

TEST(DeviceRanksTest, ARankWithoutItsGroupDoesNotCompute) {
  const ModelConfig config = SmallConfig(4, 2, 64, 128, 256, 320);
  const RandomModel model(config, kernels::DType::kQ8_0, 7);
  EmulatedDevice device(kRankMemory);
  Part part;
  ASSERT_TRUE(Load(model, {.rank = 1, .size = 2}, device, part).ok());
  const std::vector<int32_t> ids = {1}, table = Table(0);
  StepBatch batch;
  batch.slices = {{ids, 0, table, true}};
  const absl::Status refused = part.transformer->Forward(batch, {});
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused.message(), "rank 1 of 2 has no communicator of its group");
}

TEST(DeviceRanksTest, ALostRankEndsTheStepWithTheCommunicatorsError) {
  const ModelConfig config = SmallConfig(4, 2, 64, 128, 256, 320);
  const RandomModel model(config, kernels::DType::kQ8_0, 7);
  HostCollectives host;
  DeviceRanks ranks(host, 2, 2, {});
  ASSERT_TRUE(ranks.all_connected());
  Part part;
  ASSERT_TRUE(Load(model, {.rank = 0, .size = 2}, *ranks[0].device, part).ok());
  part.transformer->SetCommunicator(ranks[0].communicator.get());
  std::jthread lost([&] { ranks[1].communicator->Abort(absl::UnavailableError("rank 1 ends")); });
  const std::vector<int32_t> ids = {1}, table = Table(0);
  std::vector<float> logits(config.vocabulary);
  StepBatch batch;
  batch.slices = {{ids, 0, table, true}};
  EXPECT_FALSE(part.transformer->Forward(batch, absl::MakeSpan(logits)).ok());
  EXPECT_FALSE(part.transformer->Forward(batch, absl::MakeSpan(logits)).ok()) << "nor later";
  part.transformer->SetCommunicator(nullptr);
}

// 3 heads of 64 are three quarters of a block of 256 columns.
TEST(DeviceRanksTest, BlocksThatHeadsCutAreHeldWholeByEachThatNeedsThem) {
  const ModelConfig config = SmallConfig(12, 4, 64, 256, 1024, 160);
  const RandomModel model(config, kernels::DType::kQ4_K, 7);
  struct Row {
    int64_t cols, lead;
  };
  const Row rows[] = {{256, 0}, {512, 192}, {512, 128}, {256, 64}};
  for (int rank = 0; rank < 4; ++rank) {
    EmulatedDevice device(kRankMemory);
    Part part;
    ASSERT_TRUE(Load(model, {.rank = rank, .size = 4}, device, part).ok());
    const Matrix& output = part.weights.layers[0].output;
    EXPECT_EQ(output.view.cols, rows[rank].cols);
    EXPECT_EQ(output.lead, rows[rank].lead);
    const DeviceWorkspace& space = part.transformer->plan().workspace;
    EXPECT_EQ(space.attended_stride, rows[rank].cols);
    EXPECT_EQ(space.attended_lead, rows[rank].lead);
    EXPECT_GE(space.gate_up - space.attended, space.tokens * rows[rank].cols * 2);
  }
}

TEST(DeviceRanksTest, AnFfnThatNoGpuComputesIsRefusedWithItsSize) {
  const RandomModel model(SmallConfig(4, 2, 64, 128, 172, 160), kernels::DType::kF32, 7);
  for (const int size : {1, 2}) {
    EmulatedDevice device(kRankMemory);
    Part part;
    const absl::Status refused = Load(model, {.rank = 0, .size = size}, device, part);
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(refused.message()),
                HasSubstr("feed-forward size 172: a GPU needs multiples of 8"));
  }
}

TEST(DeviceRanksTest, BlocksOfTheFfnThatAreLongerThanAShareAreRefusedByName) {
  // Two blocks of 256 columns for four ranks.
  const RandomModel model(SmallConfig(4, 4, 64, 256, 512, 160), kernels::DType::kQ4_K, 7);
  EmulatedDevice device(kRankMemory);
  Part part;
  const absl::Status refused = Load(model, {.rank = 0, .size = 4}, device, part);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("blk.0.ffn_down.weight: Q4_K weights come in blocks of 256 columns, and "
                        "ranks on GPUs would cut them at columns 0 and 128"));
  EXPECT_EQ(device.used_bytes(), 0);
}

}  // namespace
}  // namespace rempart::worker
