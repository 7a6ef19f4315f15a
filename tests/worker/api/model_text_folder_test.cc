// SPDX-License-Identifier: Apache-2.0
// ModelText from the files of a folder in Hugging Face layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "worker/api/model_text.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// <s> 0, </s> 1, <|end|> 2, <|image|> 9: control; the rest are text.
constexpr char kTokenizer[] = R"({
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
  "added_tokens": [
    {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 2, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 9, "content": "<|image|>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true}],
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
  "post_processor": POST,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
              "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<s>": 0, "</s>": 1, "<|end|>": 2, "h": 3, "i": 4, "hi": 5, ":": 6, "u": 7,
                      "a": 8},
            "merges": ["h i"]}})";
constexpr char kBegins[] = R"({"type": "Sequence", "processors": [
  {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
  {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                            {"Sequence": {"id": "A", "type_id": 0}}],
   "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}]})";
constexpr char kTemplate[] =
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}";

class TextFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() +
              ::testing::UnitTest::GetInstance()->current_test_info()->name() + "/";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    Write("config.json", R"({"bos_token_id": 0, "eos_token_id": 1})");
    Tokenizer("null");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ + name) << content;
  }
  void Tokenizer(const std::string& post_processor) {
    std::string text = kTokenizer;
    text.replace(text.find("POST"), 4, post_processor);
    Write("tokenizer.json", text);
  }
  std::unique_ptr<ModelText> Open(int64_t vocabulary = 10) {
    auto text = ModelText::FromFolder(folder_, vocabulary);
    EXPECT_TRUE(text.ok()) << text.status();
    return text.ok() ? *std::move(text) : nullptr;
  }
  std::string Refusal() {
    return std::string(ModelText::FromFolder(folder_, 10).status().message());
  }

  std::string folder_;
};

TEST_F(TextFolder, ATokenizerAndAConfigAreEnough) {
  const auto text = Open();
  ASSERT_NE(text, nullptr);
  EXPECT_THAT(*text->EncodeText("hi"), ElementsAre(5));
  EXPECT_TRUE(text->EndsGeneration(1));
  EXPECT_TRUE(text->EndsGeneration(2));  // by its name
  EXPECT_FALSE(text->EndsGeneration(5));
  EXPECT_EQ(text->TokenBytes(5), "hi");
  EXPECT_EQ(text->TokenBytes(2), "");
  EXPECT_THAT(std::string(text->EncodeChat("[]", "", true).status().message()),
              HasSubstr("no chat template"));
}

TEST_F(TextFolder, BeginsATextAsThePostProcessorOrTheConfigSays) {
  Tokenizer(kBegins);
  EXPECT_THAT(*Open()->EncodeText("hi"), ElementsAre(0, 5));
  Tokenizer("null");
  Write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": {"content": "<s>"}})");
  EXPECT_THAT(*Open()->EncodeText("hi"), ElementsAre(0, 5));
}

TEST_F(TextFolder, GenerationConfigAddsEndings) {
  Write("generation_config.json", R"({"eos_token_id": [1, 6]})");
  const auto text = Open();
  EXPECT_TRUE(text->EndsGeneration(6));
  EXPECT_TRUE(text->EndsGeneration(1));
  EXPECT_FALSE(text->EndsGeneration(7));
}

TEST_F(TextFolder, GenerationConfigSaysHowToSampleWhereARequestDoesNot) {
  const SamplingParams plain = Open()->default_sampling();
  EXPECT_EQ(plain.temperature, 1.0f);
  EXPECT_EQ(plain.top_k, 0);
  Write("generation_config.json",
        R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 64, "min_p": 0.05,
            "repetition_penalty": 1.1})");
  const SamplingParams own = Open()->default_sampling();
  EXPECT_EQ(own.temperature, 0.6f);
  EXPECT_EQ(own.top_p, 0.9f);
  EXPECT_EQ(own.top_k, 64);
  EXPECT_EQ(own.min_p, 0.05f);
  EXPECT_EQ(own.repetition_penalty, 1.1f);
  EXPECT_EQ(own.frequency_penalty, 0.0f);
  Write("generation_config.json", R"({"top_k": -1, "temperature": null, "top_p": 1})");
  EXPECT_EQ(Open()->default_sampling().top_k, 0);
  EXPECT_EQ(Open()->default_sampling().temperature, 1.0f);
}

TEST_F(TextFolder, TakesTheChatTemplateFromWhereItIs) {
  constexpr char kMessages[] = R"([{"role": "u", "content": "hi"}])";
  Write("tokenizer_config.json", std::string(R"({"chat_template": ")") + kTemplate + "\"}");
  EXPECT_THAT(*Open()->EncodeChat(kMessages, "", true), ElementsAre(7, 6, 5, 2));
  Write("tokenizer_config.json",
        std::string(R"({"chat_template": [{"name": "tool_use", "template": "no"},
                                          {"name": "default", "template": ")") +
            kTemplate + "\"}]}");
  EXPECT_THAT(*Open()->EncodeChat(kMessages, "", true), ElementsAre(7, 6, 5, 2));
  Write("chat_template.jinja", "a");
  EXPECT_THAT(*Open()->EncodeChat(kMessages, "", true), ElementsAre(8));
}

TEST_F(TextFolder, ReadsIntegersThatMeanNoLimit) {
  Write(
      "tokenizer_config.json",
      R"({"model_max_length": 1000000000000000019884624838656, "note": "1\"2345678901234567890123",
            "small": 1.5e-300, "add_bos_token": true, "bos_token": "<s>"})");
  EXPECT_THAT(*Open()->EncodeText("hi"), ElementsAre(0, 5));
}

TEST_F(TextFolder, RefusesTokensThatTheEmbeddingLacks) {
  const auto text = Open(/*vocabulary=*/9);
  EXPECT_EQ(text->vocabulary_size(), 9);
  EXPECT_THAT(std::string(text->EncodeText("hi<|image|>").status().message()),
              HasSubstr("the token <|image|>, which this model has no embedding for"));
}

TEST_F(TextFolder, NamesTheFileAtFault) {
  Write("generation_config.json", R"({"eos_token_id": 77})");
  EXPECT_THAT(Refusal(), HasSubstr("generation_config.json: eos_token_id has 77"));
  Write("generation_config.json", R"({"temperature": "hot"})");
  EXPECT_THAT(Refusal(),
              HasSubstr("generation_config.json: temperature is \"hot\", which must be a "
                        "number from 0 to 2; mend it, or take it out"));
  Write("generation_config.json", R"({"top_k": 2.5e9})");
  EXPECT_THAT(Refusal(), HasSubstr("top_k is 2500000000"));
  Write("generation_config.json", "[");
  EXPECT_THAT(Refusal(), HasSubstr("generation_config.json is not a JSON object"));
  Write("generation_config.json", "{}");
  Write("chat_template.jinja", "{% if %}");
  EXPECT_THAT(Refusal(), HasSubstr("the chat template does not parse"));
  Write("tokenizer.json", "{}");
  EXPECT_THAT(Refusal(), HasSubstr("tokenizer.json"));
  std::filesystem::remove(folder_ + "tokenizer.json");
  EXPECT_THAT(Refusal(), HasSubstr("tokenizer.json is missing, and so are tekken.json and"));
}

class OtherTokenizers : public TextFolder {
 protected:
  void SetUp() override {
    TextFolder::SetUp();
    std::filesystem::remove(folder_ + "tokenizer.json");
  }
  void Copy(const std::string& from, const std::string& to) {
    std::filesystem::copy_file("tests/goldens/tokenizers/" + from, folder_ + to,
                               std::filesystem::copy_options::overwrite_existing);
  }
};

TEST_F(OtherTokenizers, TekkenBeginsTextsAndEndsThem) {
  Write("config.json", "{}");
  Copy("v11.tekken.json", "tekken.json");
  const auto text = Open(/*vocabulary=*/600);
  ASSERT_NE(text, nullptr);
  EXPECT_EQ(text->vocabulary_size(), 24 + 256 + 240 - 10);
  EXPECT_EQ(text->EncodeText("[INST]hi")->at(0), 1);
  EXPECT_EQ(text->EncodeText("[INST]hi")->at(1), 3);
  EXPECT_GT(text->EncodePlainText("[INST]hi")->at(1), 23);
  EXPECT_TRUE(text->EndsGeneration(2));
  EXPECT_EQ(text->TokenBytes(24 + 'h'), "h");
  EXPECT_EQ(text->TokenBytes(3), "");
  Write("tokenizer_config.json", R"({"add_bos_token": false})");
  EXPECT_EQ(Open(600)->EncodeText("[INST]hi")->at(0), 3);
}

TEST_F(OtherTokenizers, SentencePieceTakesAddedTokens) {
  Write("config.json", "{}");
  Copy("prefix.tokenizer.model", "tokenizer.model");
  Write("added_tokens.json", R"({"<|im_start|>": 500, "<|im_end|>": 501})");
  auto text = Open(/*vocabulary=*/600);
  ASSERT_NE(text, nullptr);
  EXPECT_EQ(text->vocabulary_size(), 502);
  EXPECT_EQ(text->EncodeText("<|im_start|>hi<|im_end|>")->at(0), 1);
  EXPECT_EQ(text->EncodeText("<|im_start|>hi<|im_end|>")->at(1), 500);
  EXPECT_EQ(text->EncodeText("<|im_start|>hi<|im_end|>")->back(), 501);
  EXPECT_TRUE(text->EndsGeneration(501)) << "by its name";
  EXPECT_TRUE(text->EndsGeneration(2));
  Write("tokenizer_config.json",
        R"({"added_tokens_decoder": {"503": {"content": "<|eot_id|>", "special": true}}})");
  EXPECT_TRUE(Open(600)->EndsGeneration(503));
  EXPECT_EQ(Open(600)->EncodeText("<|eot_id|>")->back(), 503);
}

TEST_F(OtherTokenizers, SayWhatIsWrong) {
  Write("config.json", "{}");
  Write("tekken.json", "{}");
  EXPECT_THAT(Refusal(), HasSubstr("tekken.json: config is missing or no object"));
  std::filesystem::remove(folder_ + "tekken.json");
  Copy("prefix.tokenizer.model", "tokenizer.model");
  Write("added_tokens.json", R"({"<|im_start|>": "x"})");
  EXPECT_THAT(Refusal(), HasSubstr("added_tokens.json: the id of <|im_start|> is no number"));
  Write("added_tokens.json", R"({"<|im_start|>": 900000})");
  EXPECT_THAT(Refusal(), HasSubstr("\"900000\" is no id near those of tokenizer.model"));
}

}  // namespace
}  // namespace rempart::worker
