// SPDX-License-Identifier: Apache-2.0
// Every family as a GGUF file against its folder, which families_test.cc holds against
// transformers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/model/family_gguf.h"
#include "tests/worker/model/whole_model.h"
#include "worker/model/families/families.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;

constexpr char kFolder[] = "tests/goldens/families/";
constexpr double kLogitDifference = 1e-4;

struct GoldenFamily {
  const char* name;
  const char* architecture;  // of the GGUF file
};

class GgufFamilies : public ::testing::TestWithParam<GoldenFamily> {
 protected:
  void SetUp() override {
    folder_ = std::string(kFolder) + GetParam().name;
    path_ = absl::StrCat(::testing::TempDir(), "/gguf_families_", getpid(), ".gguf");
    std::ofstream(path_, std::ios::binary) << FamilyGguf(folder_, GetParam().architecture).Bytes();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string folder_, path_;
};

TEST_P(GgufFamilies, GiveTheLogitsOfTheFolder) {
  WholeModel folder(folder_, kernels::BestOps(), /*exact=*/true);
  WholeModel file(path_, kernels::BestOps(), /*exact=*/true);
  ASSERT_TRUE(folder.ok() && file.ok());
  simdjson::dom::parser parser;
  const simdjson::dom::element golden = parser.load(folder_ + "/golden.json").value();
  std::vector<int32_t> ids;
  for (int64_t id : golden["input_ids"].get_array()) ids.push_back(static_cast<int32_t>(id));
  const std::vector<float> expected = folder.Logits(ids);
  const std::vector<float> logits = file.Logits(ids);
  ASSERT_EQ(expected.size(), logits.size());
  double worst = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(double{logits[i]} - expected[i]));
    largest = std::max(largest, std::abs(double{expected[i]}));
  }
  EXPECT_LE(worst, kLogitDifference);
  EXPECT_GT(largest, 1.0);
  std::printf("%s: largest difference of logits %.2e (%.0e allowed)\n", GetParam().name, worst,
              kLogitDifference);
}

// Also of what these few tokens do not reach: the short factors of LongRoPE, the context.
TEST_P(GgufFamilies, GiveTheConfigurationOfTheFolder) {
  const absl::StatusOr<ModelSource> folder = OpenModel(folder_);
  const absl::StatusOr<ModelSource> file = OpenModel(path_);
  ASSERT_TRUE(folder.ok() && file.ok()) << folder.status() << file.status();
  const ModelConfig& expected = folder->config;
  const ModelConfig& config = file->config;
  EXPECT_EQ(config.context_length, expected.context_length);
  EXPECT_EQ(config.head_dim, expected.head_dim);
  EXPECT_FLOAT_EQ(config.attention_scale, expected.attention_scale);
  ASSERT_EQ(config.ropes.size(), expected.ropes.size());
  for (size_t i = 0; i < config.ropes.size(); ++i) {
    const RopeSpec& rope = config.ropes[i];
    EXPECT_THAT(rope.inverse_frequency,
                Pointwise(FloatNear(1e-6f), expected.ropes[i].inverse_frequency));
    EXPECT_THAT(rope.long_inverse_frequency,
                Pointwise(FloatNear(1e-6f), expected.ropes[i].long_inverse_frequency));
    EXPECT_EQ(rope.long_beyond, expected.ropes[i].long_beyond);
    EXPECT_FLOAT_EQ(rope.scale, expected.ropes[i].scale);
  }
  ASSERT_EQ(config.layers.size(), expected.layers.size());
  for (size_t i = 0; i < config.layers.size(); ++i) {
    EXPECT_EQ(config.layers[i].window, expected.layers[i].window);
    EXPECT_EQ(config.layers[i].rope, expected.layers[i].rope);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufFamilies,
    ::testing::Values(GoldenFamily{"llama3", "llama"}, GoldenFamily{"llama_bias", "llama"},
                      GoldenFamily{"llama_linear", "llama"}, GoldenFamily{"llama_tied", "llama"},
                      GoldenFamily{"mistral_nemo", "llama"},
                      GoldenFamily{"mistral_window", "llama"}, GoldenFamily{"qwen2", "qwen2"},
                      GoldenFamily{"qwen2_yarn", "qwen2"}, GoldenFamily{"qwen3", "qwen3"},
                      GoldenFamily{"gemma3", "gemma3"}, GoldenFamily{"phi3", "phi3"},
                      GoldenFamily{"phi4_mini", "phi3"}),
    [](const auto& info) { return std::string(info.param.name); });

// What files may say beyond the sizes, in one of seven layers.
class GgufKeys : public ::testing::Test {
 protected:
  explicit GgufKeys(const std::string& architecture, double epsilon = 1e-6)
      : architecture_(architecture) {
    file_.metadata.Insert("general.architecture", absl::string_view(architecture_));
    Insert("block_count", uint64_t{7});
    Insert("embedding_length", uint64_t{64});
    Insert("feed_forward_length", uint64_t{96});
    Insert("attention.head_count", uint64_t{2});
    Insert("context_length", uint64_t{512});
    Insert("attention.key_length", uint64_t{32});
    Insert("attention.layer_norm_rms_epsilon", epsilon);
    file_.tensors["token_embd.weight"].shape = {48, 64};
  }

  void Insert(const std::string& key, GgufValue value) {
    file_.metadata.Insert(names_.emplace_back(absl::StrCat(architecture_, ".", key)),
                          std::move(value));
  }
  std::string Refusal() { return std::string(ReadModelConfig(file_).status().message()); }

  const std::string architecture_;
  std::deque<std::string> names_;  // the file's metadata views them
  GgufFile file_;
};

class LlamaKeys : public GgufKeys {
 protected:
  explicit LlamaKeys(double epsilon = 1e-6) : GgufKeys("llama", epsilon) {}
};

class LlamaWithoutEpsilon : public LlamaKeys {
 protected:
  LlamaWithoutEpsilon() : LlamaKeys(0.0) {}
};

TEST_F(LlamaWithoutEpsilon, IsRefused) {
  EXPECT_THAT(Refusal(),
              HasSubstr("llama.attention.layer_norm_rms_epsilon is 0; it must be above"));
}

TEST_F(LlamaKeys, ANumberThatIsNoneIsRefusedByName) {
  Insert("rope.scaling.factor", std::nan(""));
  EXPECT_THAT(Refusal(), HasSubstr("llama.rope.scaling.factor is nan; it must be finite"));
}

TEST_F(LlamaKeys, AnEndlessNumberIsRefusedByName) {
  Insert("rope.freq_base", std::numeric_limits<double>::infinity());
  EXPECT_THAT(Refusal(), HasSubstr("llama.rope.freq_base is inf; it must be finite"));
}

TEST_F(LlamaKeys, AYarnThatTurnsBackwardsIsRefused) {
  Insert("rope.scaling.type", absl::string_view("yarn"));
  Insert("rope.scaling.yarn_beta_fast", -1.0);
  EXPECT_THAT(Refusal(), HasSubstr("llama.rope.scaling.yarn_beta_fast and yarn_beta_slow must be "
                                   "positive, not -1 and 1"));
}

TEST_F(LlamaKeys, AVocabularyThatNobodyHasIsRefused) {
  file_.tensors["token_embd.weight"].shape = {int64_t{1} << 32, 64};
  EXPECT_THAT(Refusal(), HasSubstr("token_embd.weight has 4294967296 rows; at most 16777216"));
}

class Gemma3Keys : public GgufKeys {
 protected:
  Gemma3Keys() : GgufKeys("gemma3") {}

  std::vector<int64_t> Windows() {
    const absl::StatusOr<ModelConfig> config = ReadModelConfig(file_);
    if (!config.ok()) ADD_FAILURE() << config.status();
    std::vector<int64_t> windows;
    for (const LayerSpec& layer : config->layers) {
      EXPECT_EQ(layer.rope, layer.window > 0 ? 1 : 0);
      windows.push_back(layer.window);
    }
    return windows;
  }

  void Window() { file_.metadata.Insert("gemma3.attention.sliding_window", uint64_t{16}); }
  void Flags(const std::vector<uint8_t>& flags) {
    flags_ = flags;
    file_.metadata.Insert("gemma3.attention.sliding_window_pattern",
                          GgufNumbers{GgufType::kBool, flags_.size(), flags_.data()});
  }

  std::vector<uint8_t> flags_;
};

TEST_F(Gemma3Keys, WithoutAPatternEverySixthLayerSeesEverything) {
  Window();
  EXPECT_THAT(Windows(), ElementsAre(16, 16, 16, 16, 16, 0, 16));
}

TEST_F(Gemma3Keys, WithoutAWindowEveryLayerSeesEverything) {
  EXPECT_THAT(Windows(), ElementsAre(0, 0, 0, 0, 0, 0, 0));
}

TEST_F(Gemma3Keys, ThePatternMayBeAPeriod) {
  Window();
  file_.metadata.Insert("gemma3.attention.sliding_window_pattern", uint64_t{3});
  EXPECT_THAT(Windows(), ElementsAre(16, 16, 0, 16, 16, 0, 16));
}

TEST_F(Gemma3Keys, ThePatternMayNameEachLayer) {
  Window();
  Flags({1, 0, 0, 1, 1, 0, 1});
  EXPECT_THAT(Windows(), ElementsAre(16, 0, 0, 16, 16, 0, 16));
}

TEST_F(Gemma3Keys, APatternOfAnotherLengthIsRefused) {
  Window();
  Flags({1, 0});
  EXPECT_THAT(Refusal(), HasSubstr("gemma3.attention.sliding_window_pattern has 2 entries"));
  EXPECT_THAT(Refusal(), HasSubstr("a flag for each of the 7 layers"));
}

TEST_F(Gemma3Keys, APatternOfAnotherKindIsRefused) {
  Window();
  file_.metadata.Insert("gemma3.attention.sliding_window_pattern", absl::string_view("six"));
  EXPECT_THAT(Refusal(), HasSubstr("gemma3.attention.sliding_window_pattern must be a whole"));
}

TEST_F(Gemma3Keys, TheLogitsAreCapped) {
  file_.metadata.Insert("gemma3.final_logit_softcapping", 30.0);
  EXPECT_EQ(ReadModelConfig(file_)->logit_softcap, 30.0f);
}

TEST_F(Gemma3Keys, ANegativeCapIsRefused) {
  file_.metadata.Insert("gemma3.final_logit_softcapping", -1.0);
  EXPECT_THAT(Refusal(), HasSubstr("gemma3.final_logit_softcapping is -1"));
}

TEST_F(Gemma3Keys, TheLocalRotationHasABaseOfItsOwn) {
  file_.metadata.Insert("gemma3.rope.freq_base", 160000.0);
  file_.metadata.Insert("gemma3.rope.freq_base_swa", 65536.0);
  file_.metadata.Insert("gemma3.rope.scaling.factor", 8.0);
  const absl::StatusOr<ModelConfig> config = ReadModelConfig(file_);
  ASSERT_TRUE(config.ok()) << config.status();
  // Of 16 frequencies the ninth is the base to the power -1/2.
  EXPECT_FLOAT_EQ(config->ropes[0].inverse_frequency[8], 1.0f / 400 / 8);
  EXPECT_FLOAT_EQ(config->ropes[1].inverse_frequency[8], 1.0f / 256);
}

TEST_F(Gemma3Keys, ABaseThatIsNoneIsRefused) {
  file_.metadata.Insert("gemma3.rope.freq_base_swa", 0.0);
  EXPECT_THAT(Refusal(), HasSubstr("freq_base_swa 0"));
}

TEST_F(Gemma3Keys, AnotherScalingIsRefused) {
  file_.metadata.Insert("gemma3.rope.scaling.type", absl::string_view("yarn"));
  EXPECT_THAT(Refusal(), HasSubstr("gemma3.rope.scaling.type \"yarn\" is not served"));
}

}  // namespace
}  // namespace rempart::worker
