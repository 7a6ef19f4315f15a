// SPDX-License-Identifier: Apache-2.0
// The chunking rule against one that is spelled out here, and what the command refuses.
#include "worker/api/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/worker/model/whole_model.h"
#include "worker/api/model_text.h"
#include "worker/api/worker_process.h"

namespace rempart::worker {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kStories[] = "tests/goldens/stories/stories260K.f32.gguf";
constexpr char kStory[] =
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big red ball. She wanted to play with it. The ball was very high. Lily "
    "was sad. Then her friend Tom came. He helped her to get the ball. They played all day.\n";

class PerplexityTest : public testing::Test {
 protected:
  void SetUp() override {
    options_.model_path = kStories;
    options_.text_path =
        testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name() + ".txt";
    options_.context = 32;
    options_.threads = 2;
    options_.exact = true;
    Text(kStory);
  }
  void TearDown() override { std::filesystem::remove(options_.text_path); }
  void Text(const std::string& text) {
    std::ofstream(options_.text_path, std::ios::binary) << text;
  }

  PerplexityOptions options_;
};

// Of 32 tokens, those at 17 to 31 are predicted from all before them, of which the first is BOS.
TEST_F(PerplexityTest, CountsTheSecondHalvesOfChunksThatBeginWithBos) {
  const auto source = OpenModel(kStories);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto text = ModelText::FromSource(*source);
  ASSERT_TRUE(text.ok()) << text.status();
  const std::string story(kStory, std::string(kStory).size() - 1);
  const std::vector<int32_t> ids = *(*text)->EncodePlainText(story);
  ASSERT_EQ((*text)->begin_id(), 1);
  const size_t chunks = ids.size() / 32;
  ASSERT_GE(chunks, 3u);
  WholeModel model(kStories, kernels::BestOps(), /*exact=*/true, 2, kernels::DType::kF16);
  double sum = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    std::vector<int32_t> tokens(ids.begin() + chunk * 32, ids.begin() + (chunk + 1) * 32);
    tokens[0] = 1;
    const std::vector<float> logits = model.Logits(tokens);
    for (size_t i = 17; i < 32; ++i) {
      const float* row = &logits[(i - 1) * model.vocabulary()];
      double total = 0;
      for (int64_t id = 0; id < model.vocabulary(); ++id) total += std::exp(double{row[id]});
      sum += std::log(total) - row[tokens[i]];
    }
  }
  std::vector<int32_t> heard;
  const auto result = MeasurePerplexity(
      options_, [&](const Perplexity& so_far) { heard.push_back(so_far.chunks); });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tokens_predicted, static_cast<int64_t>(chunks) * 15);
  EXPECT_NEAR(std::log(result->value), sum / static_cast<double>(chunks * 15), 1e-4);
  EXPECT_EQ(heard.size(), chunks);
  // A model of stories knows a story: far from a uniform guess among 512 tokens.
  EXPECT_LT(result->value, 20);
  EXPECT_GT(result->error, 0);
}

TEST_F(PerplexityTest, TakesSomeChunksOnly) {
  options_.chunks = 2;
  const auto result = MeasurePerplexity(options_, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->chunks, 2);
  EXPECT_EQ(result->tokens_predicted, 30);
}

// Of F32 weights, what is served is F32 arithmetic; tests/parts/parity has quantised models.
TEST_F(PerplexityTest, DivergesFromExactByNothingWhereItServesExactly) {
  options_.exact = false;
  options_.kv_cache_type = "f32";
  const auto alone = MeasurePerplexity(options_, nullptr);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_FALSE(alone->divergence.has_value());
  options_.divergence = true;
  const auto result = MeasurePerplexity(options_, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->value, alone->value);
  ASSERT_TRUE(result->divergence.has_value());
  EXPECT_EQ(result->divergence->max, 0);
  EXPECT_EQ(result->divergence->same_top_share, 1);
}

// The model's weights are F32, so that nothing else is rounded.
TEST_F(PerplexityTest, DivergesByWhatTheKvCacheTypeCosts) {
  options_.divergence = true;
  const auto cost = [&](const std::string& type) {
    options_.kv_cache_type = type;
    const auto result = MeasurePerplexity(options_, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    std::printf("KV in %s: mean divergence %.1e\n", type.c_str(), result->divergence->mean);
    return result->divergence->mean;
  };
  EXPECT_EQ(cost("f32"), 0);
  const double f16 = cost("f16"), bf16 = cost("bf16"), q8 = cost("q8");
  EXPECT_EQ(cost("auto"), f16);
  EXPECT_GT(f16, 0);
  EXPECT_GT(bf16, 10 * f16) << "three bits less";
  EXPECT_GT(q8, bf16);
  EXPECT_LT(q8, 5e-3);
}

TEST_F(PerplexityTest, SaysWhatIsWrongWithTextAndModel) {
  const auto refusal = [&] {
    return std::string(MeasurePerplexity(options_, nullptr).status().message());
  };
  Text("Once upon a time");
  EXPECT_THAT(refusal(), HasSubstr("fewer than --context 32: give a longer text"));
  Text("\xff\xfe");
  EXPECT_THAT(refusal(), AllOf(HasSubstr(options_.text_path), HasSubstr("UTF-8")));
  Text(kStory);
  options_.context = 1024;
  EXPECT_THAT(refusal(), HasSubstr("--context 1024: the model was made for 512"));
  options_.context = 32;
  options_.kernel_tier = "abacus";
  EXPECT_THAT(refusal(), HasSubstr("--kernel-tier \"abacus\" is not one that this CPU has"));
  options_.kernel_tier.clear();
  const std::string text = options_.text_path;
  options_.text_path += ".gone";
  EXPECT_THAT(refusal(), HasSubstr(".gone: No such file or directory; name a text file"));
  options_.text_path = testing::TempDir();
  EXPECT_THAT(refusal(), HasSubstr(": not a regular file; name a text file"));
  options_.text_path = text;
  std::filesystem::resize_file(text, (64 << 20) + 1);
  EXPECT_THAT(refusal(), HasSubstr("has 67108865 bytes, more than 67108864: give a part of it"));
}

// A text is no model: its faults are those of a wrong command.
TEST_F(PerplexityTest, WhatIsWrongWithTheTextIsNoFaultOfTheModel) {
  for (const char* text : {"Once upon a time", "", "\xff\xfe"}) {
    Text(text);
    EXPECT_EQ(ExitCodeOf(MeasurePerplexity(options_, nullptr).status()), kExitConfig) << text;
  }
  options_.text_path += ".gone";
  EXPECT_EQ(ExitCodeOf(MeasurePerplexity(options_, nullptr).status()), kExitConfig);
}

TEST_F(PerplexityTest, LogitsThatAreNotNumbersAreNoFigure) {
  const auto source = OpenModel(kStories);
  ASSERT_TRUE(source.ok()) << source.status();
  const absl::Span<const uint8_t> bytes = source->files[0].bytes();
  std::string file(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const int64_t norm = source->tensors.at("output_norm.weight").data - bytes.data();
  const float none = std::nanf("");
  std::memcpy(&file[norm], &none, sizeof(none));
  options_.model_path = options_.text_path + ".gguf";
  std::ofstream(options_.model_path, std::ios::binary) << file;
  const absl::Status refused = MeasurePerplexity(options_, nullptr).status();
  std::filesystem::remove(options_.model_path);
  EXPECT_EQ(ExitCodeOf(refused), kExitModel);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr(options_.model_path), HasSubstr("logits that are not numbers")));
}

TEST(PerplexityOptions, AreReadFromWords) {
  const auto options = ParsePerplexityOptions(
      {"--context", "64", "m.gguf", "--exact", "t.txt", "--chunks", "3", "--threads", "2"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->model_path, "m.gguf");
  EXPECT_EQ(options->text_path, "t.txt");
  EXPECT_EQ(options->context, 64);
  EXPECT_EQ(options->chunks, 3);
  EXPECT_EQ(options->threads, 2);
  EXPECT_TRUE(options->exact);
  EXPECT_FALSE(options->divergence);
  EXPECT_EQ(options->kv_cache_type, "auto");
  const auto of_kv =
      ParsePerplexityOptions({"m", "t", "--exact", "--divergence", "--kv-cache-type", "q8"});
  ASSERT_TRUE(of_kv.ok()) << of_kv.status();
  EXPECT_EQ(of_kv->kv_cache_type, "q8");
  EXPECT_TRUE(of_kv->exact && of_kv->divergence);
}

TEST(PerplexityOptions, NameTheArgumentAtFault) {
  const auto refusal = [](const std::vector<std::string>& words) {
    return std::string(ParsePerplexityOptions(words).status().message());
  };
  EXPECT_EQ(refusal({"m"}), "a model and a text file are needed, not 1 names");
  EXPECT_EQ(refusal({"m", "t", "--context"}), "--context needs a value");
  EXPECT_EQ(refusal({"m", "t", "--context", "4"}),
            "--context 4: must be a number from 8 to 1048576");
  EXPECT_EQ(refusal({"m", "t", "--chunks", "x"}), "--chunks x: must be a number from 1 to 1048576");
  EXPECT_EQ(refusal({"m", "t", "--fast"}), "unknown flag --fast");
  EXPECT_THAT(refusal({"m", "t", "--exact", "--divergence"}), HasSubstr("leave one of them out"));
  EXPECT_THAT(refusal({"m", "t", "--exact", "--divergence", "--kv-cache-type", "f32"}),
              HasSubstr("name a --kv-cache-type of f16, bf16 or q8"));
  EXPECT_EQ(refusal({"m", "t", "--kv-cache-type", "fp8"}),
            "--kv-cache-type fp8: must be one of auto, f16, f32, bf16, q8");
}

}  // namespace
}  // namespace rempart::worker
