// SPDX-License-Identifier: Apache-2.0
// Model folders, whole and wrong.
#include "worker/model/model_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/split_files.h"
#include "tests/worker/model/tiny_gguf.h"
#include "tests/worker/model/whole_model.h"
#include "worker/model/safetensors.h"

namespace rempart::worker {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kLlama[] = "tests/goldens/families/llama_tied";

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

class ModelFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() +
              ::testing::UnitTest::GetInstance()->current_test_info()->name() + "/";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ + name, std::ios::binary) << content;
  }
  void Copy(const std::string& name) { Write(name, Read(absl::StrCat(kLlama, "/", name))); }
  // The config of llama_tied with a text of it replaced.
  void Config(const std::string& old, const std::string& replacement) {
    const std::string text = Read(absl::StrCat(kLlama, "/config.json"));
    ASSERT_THAT(text, HasSubstr(old));
    Write("config.json", absl::StrReplaceAll(text, {{old, replacement}}));
  }
  std::string Refusal() { return std::string(OpenModel(folder_).status().message()); }

  // Splits the one file of llama_tied into two shards of whole tensors.
  void Shard() {
    auto whole = OpenWhole();
    std::vector<std::string> names;
    for (const auto& [name, tensor] : whole) names.push_back(name);
    std::sort(names.begin(), names.end());
    std::string map;
    for (int shard = 0; shard < 2; ++shard) {
      const std::string file = absl::StrCat("model-0000", shard + 1, "-of-00002.safetensors");
      std::string header = "{", data;
      for (size_t i = shard; i < names.size(); i += 2) {
        const TensorView& tensor = whole.at(names[i]);
        absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", names[i],
                        "\":{\"dtype\":\"BF16\",\"shape\":", tensor.ShapeText(),
                        ",\"data_offsets\":[", data.size(), ",", data.size() + tensor.bytes, "]}");
        data.append(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
        absl::StrAppend(&map, map.empty() ? "" : ",", "\"", names[i], "\":\"", file, "\"");
      }
      header += "}";
      while (header.size() % 8 != 0) header += ' ';
      const uint64_t length = header.size();
      Write(file, std::string(reinterpret_cast<const char*>(&length), 8) + header + data);
    }
    Write("model.safetensors.index.json",
          absl::StrCat("{\"metadata\":{},\"weight_map\":{", map, "}}"));
  }

  std::string folder_;

 private:
  TensorMap OpenWhole() {
    bytes_ = Read(absl::StrCat(kLlama, "/model.safetensors"));
    return *ParseSafetensors(
        "whole",
        absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes_.data()), bytes_.size()));
  }
  std::string bytes_;
};

TEST_F(ModelFolder, ShardsGiveTheSameModelAsOneFile) {
  Copy("config.json");
  Shard();
  WholeModel sharded(folder_, kernels::BestOps(), true);
  WholeModel whole(kLlama, kernels::BestOps(), true);
  ASSERT_TRUE(sharded.ok() && whole.ok());
  EXPECT_EQ(sharded.Logits({1, 2, 3}), whole.Logits({1, 2, 3}));
}

TEST_F(ModelFolder, RefusesShardsThatDoNotFitTheIndex) {
  Copy("config.json");
  Shard();
  const std::string index = Read(folder_ + "model.safetensors.index.json");
  Write("model.safetensors.index.json",
        absl::StrReplaceAll(index, {{"\"model.norm.weight\"", "\"model.other.weight\""}}));
  EXPECT_THAT(Refusal(), HasSubstr("the tensor model.other.weight is missing"));
  Write("model.safetensors.index.json",
        R"({"weight_map": {"model.norm.weight": "../model.safetensors"}})");
  EXPECT_THAT(Refusal(), HasSubstr("must be the name of a .safetensors file in the same folder"));
  Write("model.safetensors.index.json", R"({"weight_map": {"a": "gone.safetensors"}})");
  EXPECT_THAT(Refusal(), HasSubstr("gone.safetensors: No such file"));
  Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(Refusal(), HasSubstr("weight_map is missing"));
}

TEST_F(ModelFolder, SaysWhatToNameInstead) {
  EXPECT_THAT(Refusal(), HasSubstr("config.json: No such file"));
  Copy("config.json");
  EXPECT_THAT(Refusal(), HasSubstr("has neither model.safetensors nor"));
  Write("pytorch_model.bin", "x");
  EXPECT_THAT(Refusal(), HasSubstr("pytorch_model.bin is a pickle file"));
  Write("model.gguf", "x");
  EXPECT_THAT(Refusal(), HasSubstr("model.gguf: name that file instead"));
}

TEST_F(ModelFolder, ListsTheFilesOfTheModel) {
  for (const char* name :
       {"model.safetensors", "config.json", "README.md", "chat_template.jinja"}) {
    Write(name, "x");
  }
  EXPECT_THAT(*ModelFilesOf(folder_),
              ElementsAre(folder_ + "/chat_template.jinja", folder_ + "/config.json",
                          folder_ + "/model.safetensors"));
  EXPECT_THAT(*ModelFilesOf("m/x.gguf"), ElementsAre("m/x.gguf"));
  EXPECT_THAT(*ModelFilesOf("m/x-00001-of-00002.gguf"),
              ElementsAre("m/x-00001-of-00002.gguf", "m/x-00002-of-00002.gguf"));
}

class SplitModel : public ModelFolder {
 protected:
  std::string Part(int part, int count) {
    return absl::StrCat("tiny-0000", part, "-of-0000", count, ".gguf");
  }
  void WriteParts(const std::vector<std::string>& parts) {
    const auto count = static_cast<int>(parts.size());
    for (int i = 0; i < count; ++i) Write(Part(i + 1, count), parts[i]);
  }
  std::string RefusalOf(const std::string& name) {
    return std::string(OpenModel(folder_ + name).status().message());
  }
};

TEST_F(SplitModel, IsTheSameAsOneFile) {
  Write("whole.gguf", TinyGguf().front());
  WriteParts(TinyGguf(3));
  WholeModel parts(folder_ + Part(1, 3), kernels::BestOps(), true);
  WholeModel whole(folder_ + "whole.gguf", kernels::BestOps(), true);
  ASSERT_TRUE(parts.ok() && whole.ok());
  EXPECT_EQ(parts.Logits({1, 2, 3}), whole.Logits({1, 2, 3}));
}

TEST_F(SplitModel, NamesThePartThatIsMissing) {
  WriteParts(TinyGguf(3));
  std::filesystem::remove(folder_ + Part(2, 3));
  const absl::Status status = OpenModel(folder_ + Part(1, 3)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(Part(2, 3)), HasSubstr("part 2 of 3 of the model is missing")));
}

TEST_F(SplitModel, AsksForTheFirstPart) {
  WriteParts(TinyGguf(2));
  EXPECT_THAT(
      RefusalOf(Part(2, 2)),
      AllOf(HasSubstr("is part 2 of 2"), HasSubstr("name its first part"), HasSubstr(Part(1, 2))));
}

TEST_F(SplitModel, RefusesPartsThatDoNotBelongTogether) {
  const std::vector<std::string> two = TinyGguf(2), three = TinyGguf(3);
  WriteParts(two);
  Write(Part(2, 2), three[1]);
  EXPECT_THAT(RefusalOf(Part(1, 2)),
              AllOf(HasSubstr(Part(2, 2)),
                    HasSubstr("named as part 2 of 2, but split.no is 1 and split.count 3")));
  WriteParts({two[0], two[0]});
  EXPECT_THAT(RefusalOf(Part(1, 2)), HasSubstr("named as part 2 of 2, but split.no is 0"));
  Write("alone.gguf", two[0]);
  EXPECT_THAT(RefusalOf("alone.gguf"), HasSubstr("parts of a model are named "
                                                 "NAME-00001-of-00002.gguf"));
  WriteParts({TinyGguf().front(), two[1]});
  EXPECT_THAT(RefusalOf(Part(1, 2)), HasSubstr("named as part 1 of 2, but split.no is 0"));
  WriteParts(TinyGguf(2, /*tensor_count=*/12));
  EXPECT_THAT(RefusalOf(Part(1, 2)),
              HasSubstr("split.tensors.count is 12, but all parts have 11 tensors"));
}

TEST(MappedFile, TooManyOpenFilesAreNoWrongPath) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = dup(STDIN_FILENO);
  ASSERT_GE(next, 0);
  close(next);
  const rlimit none = {static_cast<rlim_t>(next), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status refused = MappedFile::Open(kLlama + std::string("/config.json")).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("config.json: Too many open files; raise the limit of open files"));
}

TEST(SplitFiles, AreRecognisedByTheirNamesAlone) {
  for (const char* name : {"a.gguf", "a-00001-of-00001.gguf", "a-0001-of-0003.gguf",
                           "a-00001-of-00003.bin", "00001-of-00003.gguf", ""}) {
    EXPECT_THAT(*SplitFilesOf(name), ElementsAre(name));
  }
  EXPECT_THAT(*SplitFilesOf("-00001-of-00002.gguf"),
              ElementsAre("-00001-of-00002.gguf", "-00002-of-00002.gguf"));
  EXPECT_THAT(std::string(SplitFilesOf("a-00001-of-99999.gguf").status().message()),
              HasSubstr("named as one of 99999 parts; at most 1000 are read"));
  EXPECT_THAT(std::string(SplitFilesOf("a-00000-of-00002.gguf").status().message()),
              HasSubstr("name its first part, a-00001-of-00002.gguf"));
}

TEST_F(ModelFolder, RefusesOtherFamiliesAndSaysWhichAreServed) {
  Copy("model.safetensors");
  for (const char* name : {"mixtral", "qwen3_moe"}) {
    Write("config.json", Read(absl::StrCat("tests/goldens/families/", name, "/config.json")));
    EXPECT_THAT(Refusal(), AllOf(HasSubstr(absl::StrCat("model_type \"", name, "\" is not served")),
                                 HasSubstr("mixture of experts"),
                                 HasSubstr("llama, mistral, qwen2, qwen3, gemma3_text, phi3")));
  }
}

struct WrongField {
  const char* old;
  const char* replacement;
  const char* message;
};

class WrongFields : public ModelFolder, public ::testing::WithParamInterface<WrongField> {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "wrong_field/";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
};

TEST_P(WrongFields, AreRefusedByName) {
  Copy("model.safetensors");
  Config(GetParam().old, GetParam().replacement);
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("config.json"), HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    All, WrongFields,
    ::testing::Values(
        WrongField{"\"use_cache\": true",
                   R"("quantization_config": {"quant_method": "hqq", "bits": 4})",
                   "quantization_config.quant_method \"hqq\" is not served"},
        WrongField{"\"use_cache\": true", R"("num_experts": 8)", "num_experts: mixture of experts"},
        WrongField{"\"use_cache\": true", R"("embedding_multiplier": 12.0)",
                   "embedding_multiplier is not served"},
        WrongField{"\"rope_type\": \"default\"", R"("rope_type": "dynamic", "factor": 2.0)",
                   "rope_parameters.rope_type \"dynamic\" is not served"},
        WrongField{"\"rope_type\": \"default\"", R"("rope_type": "llama3", "factor": 2.0)",
                   "rope_parameters.low_freq_factor is missing"},
        WrongField{"\"rope_type\": \"default\"",
                   R"("rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0])",
                   "rope_parameters.long_factor must be 8 positive numbers, not 1"},
        WrongField{"\"rope_theta\": 10000.0", R"("rope_theta": -1.0)", "rope_theta -1"},
        WrongField{"\"rms_norm_eps\": 1e-06", R"("rms_norm_eps": 0.0)",
                   "rms_norm_eps is 0; it must be above 0"},
        WrongField{"\"hidden_act\": \"silu\"", R"("hidden_act": "relu")",
                   "hidden_act \"relu\" is not served"},
        WrongField{"\"hidden_size\": 96", R"("hidden_size": 0)",
                   "hidden_size is 0; it must be an integer from 1"},
        WrongField{"\"hidden_size\": 96,", "", "hidden_size is missing"},
        WrongField{"\"num_key_value_heads\": 2", R"("num_key_value_heads": "two")",
                   "num_key_value_heads is \"two\""},
        WrongField{"\"tie_word_embeddings\": true", R"("tie_word_embeddings": false)",
                   "tie_word_embeddings is false, but the tensor lm_head.weight is missing"},
        WrongField{"LlamaForCausalLM", "LlamaForSequenceClassification",
                   "served are models that generate text"},
        WrongField{"\"model_type\": \"llama\"", R"("model_type": 7)", "model_type is 7"}));

TEST_F(ModelFolder, RefusesShapesAndTensorsThatDoNotFit) {
  Copy("model.safetensors");
  ThreadPool pool({.threads = 1});
  const auto bind = [&] {
    const auto source = OpenModel(folder_);
    EXPECT_TRUE(source.ok()) << source.status();
    return std::string(
        BindWeights(source->tensors, source->config, kernels::BestOps(), {.pack = false}, pool)
            .status()
            .message());
  };
  Config("\"intermediate_size\": 224", "\"intermediate_size\": 192");
  EXPECT_THAT(bind(), HasSubstr("blk.0.ffn_gate.weight is [224, 96] instead of [192, 96]"));
  Config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
  EXPECT_THAT(bind(), HasSubstr("is not part of this architecture"));
  Config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
  EXPECT_THAT(bind(), HasSubstr("the tensor blk.3.attn_norm.weight is missing"));
}

}  // namespace
}  // namespace rempart::worker
