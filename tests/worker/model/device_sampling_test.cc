// SPDX-License-Identifier: Apache-2.0
// Tokens that the device's decoder draws itself, over the emulated device: what the engine's
// sampler draws from the logits of the same batch, which rows are left to it, and what travels.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/worker/model/mixed_model.h"
#include "worker/device/emulated_device.h"
#include "worker/engine/sampler.h"
#include "worker/model/device_transformer.h"

namespace rempart::worker {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr int64_t kBlocks = 64;

// Counts what is copied to the host, and to the device.
class CountingDevice : public EmulatedDevice {
 public:
  CountingDevice() : EmulatedDevice(int64_t{1} << 30) {}
  void CopyOut(void* host, const void* device, int64_t bytes) override {
    copied_out += bytes;
    EmulatedDevice::CopyOut(host, device, bytes);
  }
  void CopyIn(void* device, const void* host, int64_t bytes) override {
    copied_in += bytes;
    EmulatedDevice::CopyIn(device, host, bytes);
  }
  int64_t copied_out = 0, copied_in = 0;
};

// A model, and sequences that have each computed some tokens.
class Drawing {
 public:
  explicit Drawing(const MixedModelSpec& spec) : model_(spec) {
    DeviceModelOptions options;
    options.context_length = 320;
    options.max_step_tokens = 96;
    options.max_sequences = 5;
    options.reserve_bytes = 0;
    options.kv_bytes =
        kernels::DeviceKvBlockBytes(false, spec.config.kv_heads, spec.config.head_dim) *
        static_cast<int64_t>(spec.config.layers.size()) * kBlocks;
    auto made = DeviceTransformer::Create(device, spec.config, model_.weights(), options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) transformer = *std::move(made);
    std::mt19937 random(5);
    for (int32_t i = 0; i < 5; ++i) {
      tables.emplace_back();
      for (int32_t block = 0; block < 12; ++block) tables.back().push_back(i * 12 + block);
      ids.emplace_back();
      for (int token = 0; token < 40; ++token) {
        ids.back().push_back(static_cast<int32_t>(random() % spec.config.vocabulary));
      }
    }
  }

  int64_t vocabulary() const { return transformer->config().vocabulary; }
  SequenceSlice Slice(size_t sequence, int32_t first, size_t count, bool wants) const {
    return {absl::MakeConstSpan(ids[sequence]).subspan(first, count), first, tables[sequence],
            wants};
  }
  // So that each sequence can go on at position 20.
  void ComputePrompts() {
    for (size_t i = 0; i < 5; ++i) {
      StepBatch prompt;
      prompt.slices = {Slice(i, 0, 20, false)};
      ASSERT_TRUE(transformer->Forward(prompt, {}).ok());
    }
  }
  // Five decodes at `position`.
  StepBatch Decodes(int32_t position, const SliceSampling* sampling) const {
    StepBatch batch;
    for (size_t i = 0; i < 5; ++i) {
      batch.slices.push_back(Slice(i, position, 1, true));
      batch.slices.back().sampling = sampling;
    }
    return batch;
  }

  CountingDevice device;
  std::unique_ptr<DeviceTransformer> transformer;
  std::vector<std::vector<int32_t>> tables, ids;

 private:
  MixedModel model_;
};

SamplingParams RandomParams(std::mt19937& random) {
  const auto one_in = [&](uint32_t n) { return random() % n == 0; };
  SamplingParams params;
  params.temperature = one_in(4) ? 0.0f : 0.2f + 0.01f * static_cast<float>(random() % 150);
  params.seed = random();
  if (one_in(2)) params.top_k = static_cast<int32_t>(random() % 40);
  if (one_in(2)) params.top_p = 0.3f + 0.1f * static_cast<float>(random() % 7);
  if (one_in(3)) params.min_p = 0.05f;
  if (one_in(3)) params.logit_bias = {{7, 3.0f}, {11, -100.0f}};
  if (one_in(2)) params.repetition_penalty = 1.2f;
  if (one_in(3)) params.presence_penalty = 0.7f;
  params.top_logprobs = one_in(2) ? 0 : -1;
  return params;
}

// Every `step`-th token from `first` on.
std::vector<uint32_t> MaskOf(int64_t vocabulary, int64_t first, int64_t step) {
  std::vector<uint32_t> mask(static_cast<size_t>(MaskWords(vocabulary)), 0);
  for (int64_t id = first; id < vocabulary; id += step) mask[id / 32] |= 1u << (id % 32);
  return mask;
}

class DeviceSamplingFamilies : public ::testing::TestWithParam<size_t> {};

// Runs the batch for its logits alone, then once more with draws: both must say the same.
void ExpectDrawnAsByTheHost(Drawing& drawing, const StepBatch& batch) {
  std::vector<const SliceSampling*> wanted;
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.wants_logits) wanted.push_back(slice.sampling);
  }
  const auto vocabulary = static_cast<size_t>(drawing.vocabulary());
  std::vector<float> logits(wanted.size() * vocabulary), rest(logits.size(), 77.0f);
  std::vector<DrawnToken> drawn(wanted.size());
  ASSERT_TRUE(drawing.transformer->Forward(batch, absl::MakeSpan(logits)).ok());
  ASSERT_TRUE(
      drawing.transformer->Forward(batch, absl::MakeSpan(rest), absl::MakeSpan(drawn)).ok());
  SamplerScratch scratch;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto row = absl::MakeSpan(logits).subspan(i * vocabulary, vocabulary);
    const auto other = absl::MakeSpan(rest).subspan(i * vocabulary, vocabulary);
    ASSERT_EQ(drawn[i].is_drawn, wanted[i] != nullptr);
    if (wanted[i] == nullptr) {
      EXPECT_EQ(other, row);
      continue;
    }
    EXPECT_THAT(other, Each(77.0f)) << "logits of a row that is drawn stay where they are";
    const auto sampled = Sample(row, *wanted[i], scratch);
    ASSERT_TRUE(sampled.ok());
    EXPECT_EQ(drawn[i].token_id, sampled->token_id);
    EXPECT_EQ(drawn[i].logprob, sampled->logprob ? sampled->logprob->chosen.logprob : 0);
  }
}

TEST_P(DeviceSamplingFamilies, DrawsWhatTheHostDrawsFromTheSameLogits) {
  Drawing drawing(MixedModelSpecs()[GetParam()]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  std::mt19937 random(9);
  for (int round = 0; round < 8; ++round) {
    SCOPED_TRACE(round);
    std::vector<SamplingParams> params;
    std::vector<std::vector<uint32_t>> masks(5);
    for (int i = 0; i < 5; ++i) {
      params.push_back(RandomParams(random));
      const int64_t steps[] = {2, 40, 1000};
      if (random() % 2 == 0) continue;
      masks[i] = MaskOf(drawing.vocabulary(), random() % 30, steps[random() % 3]);
    }
    const std::vector<TokenCount> counts = {{3, 1}, {7, 0}, {200, 4}};
    std::vector<SliceSampling> samplings;
    for (const SamplingParams& each : params) {
      samplings.push_back(
          {&each,
           each.has_penalties() ? absl::MakeConstSpan(counts) : absl::Span<const TokenCount>(),
           round, masks[samplings.size()]});
    }
    // Decodes alone, as a graph; then beside a prompt's end and the middle of another.
    StepBatch batch = drawing.Decodes(20, nullptr);
    for (size_t i = 0; i < 5; ++i) {
      if (random() % 4 != 0) batch.slices[i].sampling = &samplings[i];
    }
    ASSERT_NO_FATAL_FAILURE(ExpectDrawnAsByTheHost(drawing, batch));
    batch.slices[1] = drawing.Slice(1, 20, 9, true);
    batch.slices[1].sampling = &samplings[1];
    batch.slices[3] = drawing.Slice(3, 20, 3, false);
    ASSERT_NO_FATAL_FAILURE(ExpectDrawnAsByTheHost(drawing, batch));
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeviceSamplingFamilies,
                         ::testing::Range<size_t>(0, MixedModelSpecs().size()),
                         [](const auto& info) { return MixedModelSpecs()[info.param].name; });

TEST(DeviceSampling, WithoutRowsForTheHostOnlyTokensTravelAndNothingIsAllocated) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  const SamplingParams params{.top_p = 0.9f, .repetition_penalty = 1.1f};
  const std::vector<TokenCount> counts = {{3, 1}, {7, 0}};
  const SliceSampling sampling = {&params, counts, 0};
  std::vector<float> logits(5 * drawing.vocabulary());
  std::vector<DrawnToken> drawn(5);
  StepBatch batch = drawing.Decodes(20, &sampling);
  const auto run = [&] {
    const int64_t before = drawing.device.copied_out;
    EXPECT_TRUE(
        drawing.transformer->Forward(batch, absl::MakeSpan(logits), absl::MakeSpan(drawn)).ok());
    return drawing.device.copied_out - before;
  };
  const int64_t allocations = drawing.device.allocations();
  EXPECT_EQ(run(), 8 * 8) << "a token and a log-probability for each of eight slices";
  int64_t graphs = drawing.device.graphs();
  const int64_t waits = drawing.device.waits();
  batch = drawing.Decodes(21, &sampling);
  EXPECT_EQ(run(), 8 * 8);
  EXPECT_EQ(drawing.device.waits(), waits + 1);
  EXPECT_EQ(drawing.device.graphs(), ++graphs) << "of the second step of this size";
  batch.slices[1].sampling = batch.slices[2].sampling = nullptr;
  EXPECT_EQ(run(), 8 * 8 + 2 * 4 * drawing.vocabulary());
  EXPECT_EQ(drawing.device.graphs(), graphs) << "the same one, whoever draws";
  EXPECT_EQ(drawing.device.allocations(), allocations);
}

TEST(DeviceSampling, MasksTravelWhereARowHasOne) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  const SamplingParams params{.seed = 3};
  const std::vector<uint32_t> odd = MaskOf(drawing.vocabulary(), 1, 2);
  const std::vector<uint32_t> seventh = MaskOf(drawing.vocabulary(), 0, 7);
  const std::vector<uint32_t> none(odd.size(), 0);
  const SliceSampling plain = {&params, {}, 0}, masks[] = {
                                                    {&params, {}, 0, odd},
                                                    {&params, {}, 0, seventh},
                                                    {&params, {}, 0, none},
                                                };
  std::vector<float> logits(5 * drawing.vocabulary());
  std::vector<DrawnToken> drawn(5);
  StepBatch batch = drawing.Decodes(20, &plain);
  const auto run = [&] {
    const int64_t before = drawing.device.copied_in;
    EXPECT_TRUE(
        drawing.transformer->Forward(batch, absl::MakeSpan(logits), absl::MakeSpan(drawn)).ok());
    return drawing.device.copied_in - before;
  };
  const int64_t allocations = drawing.device.allocations();
  const int64_t without = run();
  batch.slices[1].sampling = &masks[0];
  batch.slices[3].sampling = &masks[1];
  batch.slices[4].sampling = &masks[2];
  EXPECT_EQ(run(), without + 3 * 4 * MaskWords(drawing.vocabulary()));
  EXPECT_EQ(drawn[1].token_id % 2, 1);
  EXPECT_EQ(drawn[3].token_id % 7, 0);
  EXPECT_EQ(drawn[4].token_id, -2) << "nothing is allowed";
  for (const DrawnToken& each : drawn) EXPECT_TRUE(each.is_drawn);
  const int64_t graphs = drawing.device.graphs();
  for (SequenceSlice& slice : batch.slices) slice.sampling = &masks[0];
  EXPECT_EQ(run(), without + 5 * 4 * MaskWords(drawing.vocabulary()));
  for (const DrawnToken& each : drawn) EXPECT_EQ(each.token_id % 2, 1);
  batch = drawing.Decodes(20, &plain);
  EXPECT_EQ(run(), without) << "no mask is left over";
  EXPECT_EQ(drawing.device.graphs(), graphs) << "the same one, with masks or without";
  EXPECT_EQ(drawing.device.allocations(), allocations);
}

TEST(DeviceSampling, ARowForWhoseListsThereIsNoRoomIsLeftToTheHost) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  const SamplingParams params{.repetition_penalty = 1.1f};
  std::vector<TokenCount> counts(static_cast<size_t>(drawing.transformer->plan().workspace.listed) -
                                 1);
  const SliceSampling few = {&params, absl::MakeConstSpan(counts).first(1), 0};
  const SliceSampling too_many = {&params, counts, 0};
  StepBatch batch = drawing.Decodes(20, &few);
  batch.slices[2].sampling = &too_many;
  std::vector<float> logits(5 * drawing.vocabulary());
  std::vector<DrawnToken> drawn(5);
  ASSERT_TRUE(
      drawing.transformer->Forward(batch, absl::MakeSpan(logits), absl::MakeSpan(drawn)).ok());
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(drawn[i].is_drawn, i != 2) << i;
}

TEST(DeviceSampling, RefusesTokensOutsideTheVocabularyAndTooLittleRoom) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  std::vector<float> logits(5 * drawing.vocabulary());
  std::vector<DrawnToken> drawn(5);
  const auto refuse = [&](const SliceSampling& sampling, size_t room, const std::string& why) {
    const StepBatch batch = drawing.Decodes(0, &sampling);
    const absl::Status status = drawing.transformer->Forward(batch, absl::MakeSpan(logits),
                                                             absl::MakeSpan(drawn).first(room));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  SamplingParams biased;
  biased.logit_bias = {{333, 1.0f}};
  refuse({&biased, {}, 0}, 5, "token 333 of a bias or penalty");
  const SamplingParams plain;
  const std::vector<TokenCount> counts = {{-1, 1}};
  refuse({&plain, counts, 0}, 5, "token -1 of a bias or penalty");
  refuse({&plain, {}, 0}, 4, "too little room");
  for (const int64_t words : {1, 12}) {
    const std::vector<uint32_t> mask(static_cast<size_t>(words));
    refuse({&plain, {}, 0, mask}, 5,
           absl::StrCat("a mask of tokens has ", words,
                        " words, but a vocabulary of 333 tokens takes 11"));
  }
}

// Tokens of `steps` decodes of five sequences; ahead: each begun before the one before has ended.
// Each step has a mask of its own.
std::vector<DrawnToken> DecodeAll(Drawing& drawing, int steps, bool ahead) {
  const SamplingParams params{.temperature = 0.9f, .top_k = 50, .seed = 4, .top_logprobs = 0};
  std::vector<DrawnToken> all;
  std::vector<DrawnToken> drawn(5);
  std::vector<int32_t> last(5);
  for (size_t i = 0; i < 5; ++i) last[i] = drawing.ids[i][20];
  const auto finish = [&] {
    ASSERT_TRUE(drawing.transformer->Finish({}, absl::MakeSpan(drawn)).ok());
    all.insert(all.end(), drawn.begin(), drawn.end());
    for (size_t i = 0; i < 5; ++i) last[i] = drawn[i].token_id;
  };
  for (int step = 0; step < steps; ++step) {
    const bool follows = ahead && step > 0;
    std::vector<uint32_t> mask = MaskOf(drawing.vocabulary(), step % 3, 3);
    SliceSampling sampling = {&params, {}, step, mask};
    const std::vector<int32_t> unknown(5, 0);
    StepBatch batch;
    for (size_t i = 0; i < 5; ++i) {
      // Not in the order of the step before.
      const size_t sequence = (i + static_cast<size_t>(step) * 2) % 5;
      SequenceSlice slice;
      slice.token_ids = {follows ? &unknown[i] : &last[sequence], 1};
      slice.first_position = 20 + step;
      slice.block_table = drawing.tables[sequence];
      slice.wants_logits = true;
      slice.sampling = &sampling;
      if (follows) slice.follows = static_cast<int32_t>((i + 2) % 5);
      batch.slices.push_back(slice);
    }
    const auto started = drawing.transformer->Start(batch, true);
    EXPECT_TRUE(started.ok() && *started) << started.status();
    // What was staged may go.
    std::fill(mask.begin(), mask.end(), 0u);
    for (SequenceSlice& slice : batch.slices) slice = {};
    if (!ahead || step > 0) finish();
    if (!ahead) {  // in the order of the sequences
      std::vector<int32_t> of_sequence(5);
      for (size_t i = 0; i < 5; ++i) {
        of_sequence[(i + static_cast<size_t>(step) * 2) % 5] = last[i];
      }
      last = of_sequence;
    }
  }
  if (ahead) finish();
  return all;
}

TEST(DeviceSampling, AStepThatFollowsOneThatRunsTakesItsTokens) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  const std::vector<DrawnToken> expected = DecodeAll(drawing, 7, false);
  drawing.device.Defer();
  const int64_t allocations = drawing.device.allocations(), waits = drawing.device.waits();
  const std::vector<DrawnToken> ahead = DecodeAll(drawing, 7, true);
  EXPECT_EQ(drawing.device.allocations(), allocations);
  EXPECT_EQ(drawing.device.waits(), waits + 7);
  ASSERT_EQ(ahead.size(), 35u);
  std::set<int32_t> tokens;
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(ahead[i].token_id, expected[i].token_id) << i;
    EXPECT_EQ(ahead[i].logprob, expected[i].logprob) << i;
    EXPECT_EQ(ahead[i].token_id % 3, static_cast<int32_t>(i / 5) % 3) << "as its step's mask says";
    tokens.insert(expected[i].token_id);
  }
  EXPECT_GT(tokens.size(), 10u) << "the test shows nothing";
}

TEST(DeviceSampling, RefusesToFollowWhatWasNotDrawnAndAThirdStep) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  const SamplingParams params;
  const SliceSampling sampling = {&params, {}, 0};
  const auto start = [&](int32_t position, int32_t follows, const SliceSampling* draw) {
    StepBatch batch = drawing.Decodes(position, draw);
    batch.slices[2].follows = follows;
    return drawing.transformer->Start(batch, true);
  };
  std::vector<float> logits(5 * drawing.vocabulary());
  std::vector<DrawnToken> drawn(5);
  const auto finish = [&] {
    return drawing.transformer->Finish(absl::MakeSpan(logits), absl::MakeSpan(drawn));
  };
  EXPECT_THAT(std::string(start(20, 0, &sampling).status().message()), HasSubstr("no token 0"));
  EXPECT_EQ(finish().code(), absl::StatusCode::kFailedPrecondition) << "nothing runs";
  ASSERT_TRUE(*start(20, -1, &sampling));
  EXPECT_THAT(std::string(start(21, 5, &sampling).status().message()), HasSubstr("no token 5"));
  ASSERT_TRUE(*start(21, 4, &sampling));
  EXPECT_EQ(start(22, -1, &sampling).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      drawing.transformer->Forward(drawing.Decodes(22, nullptr), absl::MakeSpan(logits)).code(),
      absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(finish().ok());
  EXPECT_TRUE(finish().ok());
  // Of two at once one may give logits.
  EXPECT_FALSE(*start(22, -1, nullptr));
  EXPECT_THAT(std::string(start(23, 1, &sampling).status().message()), HasSubstr("no token 1"))
      << "which the host would draw";
  EXPECT_EQ(start(23, -1, nullptr).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(*start(23, -1, &sampling));
  EXPECT_TRUE(finish().ok());
  EXPECT_TRUE(finish().ok());
}

TEST(DeviceSampling, ManyStepsTakeNoMask) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  std::vector<int32_t> tokens;
  std::vector<DecodeSequence> sequences = {{3, 0, drawing.tables[0], {}}};
  sequences[0].sampling.mask_row = 0;
  const absl::Status status = drawing.transformer->DecodeMany(sequences, 3, &tokens);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a mask allows one token"));
}

TEST(DeviceSampling, DecodingManyStepsTakesNoMemory) {
  Drawing drawing(MixedModelSpecs()[0]);
  ASSERT_NE(drawing.transformer, nullptr);
  ASSERT_NO_FATAL_FAILURE(drawing.ComputePrompts());
  const int64_t allocations = drawing.device.allocations();
  std::vector<int32_t> tokens;
  const std::vector<DecodeSequence> sequences = {{3, 20, drawing.tables[0], {}}};
  ASSERT_TRUE(drawing.transformer->DecodeMany(sequences, 3, &tokens).ok());
  EXPECT_EQ(tokens.size(), 3u);
  EXPECT_EQ(drawing.device.allocations(), allocations);
}

}  // namespace
}  // namespace rempart::worker
