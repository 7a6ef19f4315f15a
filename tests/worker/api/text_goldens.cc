// SPDX-License-Identifier: Apache-2.0
// Token ids, rendered prompts and decoded texts of the real models against llama.cpp's, on every
// prompt and hostile string. REMPART_TEST_MODELS names the folder of the models.
#include <gtest/gtest.h>
#include <simdjson.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "worker/api/model_text.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"
#include "worker/text/text.h"

namespace rempart::worker {
namespace {

std::string Text(simdjson::dom::element element) { return std::string(std::string_view(element)); }

std::vector<int32_t> Ids(simdjson::dom::element element) {
  std::vector<int32_t> ids;
  for (int64_t id : element.get_array()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

class TextGoldens : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("REMPART_TEST_MODELS");
    ASSERT_NE(folder, nullptr);
    auto file = MappedFile::Open(std::string(folder) + "/" + GetParam() + ".gguf");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = std::make_unique<MappedFile>(*std::move(file));
    auto gguf = ParseGguf(GetParam(), file_->bytes());
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    auto text = ModelText::FromGguf(gguf->metadata);
    ASSERT_TRUE(text.ok()) << text.status();
    text_ = *std::move(text);
    goldens_ = parser_.load("tests/goldens/text/" + GetParam() + ".json");
  }

  std::unique_ptr<MappedFile> file_;
  std::unique_ptr<ModelText> text_;
  simdjson::dom::parser parser_;
  simdjson::dom::element goldens_;
};

TEST_P(TextGoldens, HostileStringsHaveTheSameIds) {
  int cases = 0;
  for (auto item : goldens_["tokenize"].get_array()) {
    auto ids = text_->EncodeText(Text(item["text"]));
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(item["ids_special"])) << Text(item["text"]);
    ++cases;
  }
  EXPECT_EQ(cases, 54);
}

TEST_P(TextGoldens, PromptsHaveTheSameIdsAndAnswersTheSameText) {
  int cases = 0;
  for (auto item : goldens_["prompts"].get_array()) {
    auto ids = text_->EncodeText(Text(item["prompt_text"]));
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(item["prompt_ids"]));
    std::string answer;
    for (int32_t id : Ids(item["greedy_ids"])) answer += text_->TokenBytes(id);
    EXPECT_EQ(answer, Text(item["text"]));
    ++cases;
  }
  EXPECT_EQ(cases, 32);
}

INSTANTIATE_TEST_SUITE_P(Models, TextGoldens,
                         ::testing::Values("smollm2-135m-instruct-q4_1", "gemma3-270m-q4_k_m"),
                         [](const auto& info) {
                           return std::string(info.param).substr(0, info.param.find('-'));
                         });

// SmolLM2 carries a chat template; the goldens hold what llama.cpp renders with it.
class ChatGoldens : public TextGoldens {};

TEST_P(ChatGoldens, TheTemplateRendersTheSamePrompt) {
  for (auto item : goldens_["prompts"].get_array()) {
    const std::string messages =
        "[{\"role\":\"user\",\"content\":" + std::string(simdjson::minify(item["user"])) + "}]";
    auto ids = text_->EncodeChat(messages, "", true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(item["prompt_ids"])) << messages;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ChatGoldens, ::testing::Values("smollm2-135m-instruct-q4_1"));

// Vocabularies of llama.cpp's own tests, each with texts and the ids that transformers gives them.
// REMPART_TEST_VOCABULARIES names their folder.
class Vocabularies : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("REMPART_TEST_VOCABULARIES");
    ASSERT_NE(folder, nullptr);
    path_ = std::string(folder) + "/ggml-vocab-" + GetParam() + ".gguf";
    auto file = MappedFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
    auto gguf = ParseGguf(GetParam(), file->bytes());
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    auto text = ModelText::FromGguf(gguf->metadata);
    ASSERT_TRUE(text.ok()) << text.status();
    text_ = *std::move(text);
  }

  std::string Read(const char* suffix) const {
    std::ifstream file(path_ + suffix, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  }

  std::string path_;
  std::unique_ptr<ModelText> text_;
};

TEST_P(Vocabularies, GiveTheIdsOfTransformers) {
  const std::vector<std::string> texts = absl::StrSplit(Read(".inp"), "\n__ggml_vocab_test__\n");
  const std::vector<std::string> lines = absl::StrSplit(Read(".out"), '\n');
  ASSERT_EQ(texts.size(), lines.size());
  EXPECT_GE(texts.size(), 46u);
  for (size_t i = 0; i < texts.size(); ++i) {
    auto ids = text_->EncodePlainText(texts[i]);
    ASSERT_TRUE(ids.ok()) << ids.status();
    if (text_->begin_id().has_value()) ids->erase(ids->begin());
    EXPECT_EQ(absl::StrJoin(*ids, " "), absl::StripAsciiWhitespace(lines[i])) << texts[i];
  }
}

// transformers' ids of what Phi 3's chat template renders.
class Phi3Vocabulary : public Vocabularies {};

TEST_P(Phi3Vocabulary, TokensTakeTheLineBreakAfterThem) {
  auto ids = text_->EncodeText("<|user|>\nHello<|end|>\n<|assistant|>\n");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(absl::StrJoin(*ids, " "), "1 32010 15043 32007 32001");
}

INSTANTIATE_TEST_SUITE_P(Families, Phi3Vocabulary, ::testing::Values("phi-3"),
                         [](const auto&) { return "phi_3"; });

INSTANTIATE_TEST_SUITE_P(Families, Vocabularies,
                         ::testing::Values("llama-spm", "llama-bpe", "qwen2", "phi-3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Chat templates of llama.cpp's own tests; tests/goldens/make_templates.py says what transformers
// renders with them.
class Templates : public ::testing::TestWithParam<std::string> {};

TEST_P(Templates, RenderWhatTransformersDoes) {
  const char* folder = std::getenv("REMPART_TEST_VOCABULARIES");
  ASSERT_NE(folder, nullptr);
  simdjson::dom::parser parser;
  const simdjson::dom::element golden = parser.load("tests/goldens/text/templates.json").value();
  simdjson::dom::element inline_source;
  std::string source;
  if (golden["inline"][GetParam()].get(inline_source) == simdjson::SUCCESS) {
    source = Text(inline_source);
  } else {
    std::ifstream file(absl::StrCat(folder, "/templates/", GetParam(), ".jinja"), std::ios::binary);
    source.assign(std::istreambuf_iterator<char>(file), {});
  }
  ASSERT_FALSE(source.empty());
  const auto chat_template = ChatTemplate::Create(source);
  ASSERT_TRUE(chat_template.ok()) << chat_template.status();
  const auto cases = golden["cases"].get_array();
  size_t count = 0;
  for (auto expected : golden["rendered"][GetParam()].get_array()) {
    // The variables of a request, and what EncodeChat adds to them.
    const std::string given = simdjson::minify(cases.at(count++));
    const auto text = (*chat_template)
                          ->Render(absl::StrCat(given.substr(0, given.size() - 1),
                                                R"(,"bos_token":"<BOS>","eos_token":"<EOS>"})"),
                                   int64_t(golden["unix_seconds"]));
    std::string_view refusal;
    if (expected["refusal"].get(refusal) == simdjson::SUCCESS) {
      EXPECT_EQ(std::string(text.status().message()), refusal) << given;
    } else {
      ASSERT_TRUE(text.ok()) << text.status() << given;
      EXPECT_EQ(*text, Text(expected["text"])) << given;
    }
  }
  EXPECT_EQ(count, 8u);
}

INSTANTIATE_TEST_SUITE_P(
    Families, Templates,
    ::testing::Values("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct",
                      "meta-llama-Llama-3.3-70B-Instruct",
                      "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
                      "mistralai-Mistral-Nemo-Instruct-2407", "Mistral-Small-3.2-24B-Instruct-2506",
                      "unsloth-mistral-Devstral-Small-2507", "Qwen-Qwen2.5-7B-Instruct",
                      "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "google-gemma-2-2b-it",
                      "microsoft-Phi-3.5-mini-instruct", "phi-4"),
    [](const auto& info) {
      std::string name = info.param;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
      return name;
    });

}  // namespace
}  // namespace rempart::worker
