// SPDX-License-Identifier: Apache-2.0
#include "worker/api/model_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTemplate[] =
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ tone }}{% endif %}";

// A byte-level vocabulary whose types lie in `types_`, as GGUF arrays are views.
class ChatModel : public ::testing::Test {
 protected:
  GgufMetadata Metadata() {
    GgufMetadata metadata;
    metadata.Insert("tokenizer.ggml.model", absl::string_view("gpt2"));
    metadata.Insert("tokenizer.ggml.pre", absl::string_view("smollm"));
    metadata.Insert("tokenizer.ggml.tokens",
                    GgufStrings{"<|im_start|>", "<|im_end|>", "u", "h", "i", "hi", ":", "a"});
    metadata.Insert("tokenizer.ggml.merges", GgufStrings{"h i"});
    metadata.Insert("tokenizer.ggml.token_type",
                    GgufNumbers{GgufType::kInt8, types_.size(), types_.data()});
    metadata.Insert("tokenizer.ggml.bos_token_id", uint64_t{0});
    metadata.Insert("tokenizer.ggml.eos_token_id", uint64_t{1});
    return metadata;
  }

  std::vector<uint8_t> types_ = {3, 3, 1, 1, 1, 1, 1, 1};
};

TEST_F(ChatModel, RendersAndEncodesAConversation) {
  GgufMetadata metadata = Metadata();
  metadata.Insert("tokenizer.chat_template", absl::string_view(kTemplate));
  auto text = ModelText::FromGguf(metadata);
  ASSERT_TRUE(text.ok()) << text.status();
  auto ids = (*text)->EncodeChat(R"([{"role": "u", "content": "hi"}])", R"({"tone": "a"})", true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(*ids, ElementsAre(0, 2, 6, 5, 1, 7));
  EXPECT_TRUE((*text)->EndsGeneration(1));
  EXPECT_FALSE((*text)->EndsGeneration(0));
}

TEST_F(ChatModel, VariablesCannotReplaceTheConversation) {
  GgufMetadata metadata = Metadata();
  metadata.Insert("tokenizer.chat_template", absl::string_view(kTemplate));
  auto text = ModelText::FromGguf(metadata);
  ASSERT_TRUE(text.ok());
  auto ids = (*text)->EncodeChat(R"([{"role": "u", "content": "hi"}])",
                                 R"({"messages": [{"role": "a", "content": "a"}]})", false);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(*ids, ElementsAre(0, 2, 6, 5, 1));
  EXPECT_THAT(std::string((*text)->EncodeChat("[]", "[1]", true).status().message()),
              HasSubstr("must be a JSON object"));
}

TEST_F(ChatModel, SaysThatThereIsNoTemplate) {
  auto text = ModelText::FromGguf(Metadata());
  ASSERT_TRUE(text.ok());
  EXPECT_THAT(std::string((*text)->EncodeChat("[]", "", true).status().message()),
              HasSubstr("no chat template: use /v1/completions"));
  EXPECT_THAT(*(*text)->EncodeText("hi"), ElementsAre(5));
}

TEST_F(ChatModel, RefusesSpecialTokensOutsideTheVocabulary) {
  GgufMetadata metadata;
  metadata.Insert("tokenizer.ggml.bos_token_id", uint64_t{8});
  for (const char* key : {"tokenizer.ggml.model", "tokenizer.ggml.pre"}) {
    metadata.Insert(key, *Metadata().String(key));
  }
  metadata.Insert("tokenizer.ggml.tokens", GgufStrings{"a", "b", "ab"});
  metadata.Insert("tokenizer.ggml.merges", GgufStrings{"a b"});
  auto text = ModelText::FromGguf(metadata);
  EXPECT_THAT(std::string(text.status().message()),
              HasSubstr("tokenizer.ggml.bos_token_id is 8, outside the vocabulary of 3 tokens"));
}

// As llama.cpp's converter writes them.
TEST_F(ChatModel, SaysHowToSampleWhereARequestDoesNot) {
  const SamplingParams plain = (*ModelText::FromGguf(Metadata()))->default_sampling();
  EXPECT_EQ(plain.temperature, 1.0f);
  EXPECT_EQ(plain.top_k, 0);
  GgufMetadata metadata = Metadata();
  metadata.Insert("general.sampling.temp", double{0.6f});
  metadata.Insert("general.sampling.top_p", double{0.9f});
  metadata.Insert("general.sampling.top_k", int64_t{64});
  metadata.Insert("general.sampling.min_p", double{0.05f});
  metadata.Insert("general.sampling.penalty_repeat", double{1.1f});
  metadata.Insert("general.sampling.mirostat", int64_t{2});
  const auto text = ModelText::FromGguf(metadata);
  ASSERT_TRUE(text.ok()) << text.status();
  const SamplingParams own = (*text)->default_sampling();
  EXPECT_EQ(own.temperature, 0.6f);
  EXPECT_EQ(own.top_p, 0.9f);
  EXPECT_EQ(own.top_k, 64);
  EXPECT_EQ(own.min_p, 0.05f);
  EXPECT_EQ(own.repetition_penalty, 1.1f);
  GgufMetadata all = Metadata();
  all.Insert("general.sampling.top_k", int64_t{-1});
  EXPECT_EQ((*ModelText::FromGguf(all))->default_sampling().top_k, 0);
}

TEST_F(ChatModel, RefusesSamplingThatNoRequestMayAskFor) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::tuple<const char*, GgufValue, const char*>> refusals = {
      {"temp", 2.5,
       "is 2.5, which must be a number from 0 to 2; convert the model with temperature"},
      {"temp", nan, "is nan, which must be a number from 0 to 2"},
      {"top_p", 0.0, "is 0, which must be a number from 1e-06 to 1"},
      {"top_k", int64_t{-2}, "is -2, which must be a number from -1"},
      {"min_p", 1.5, "is 1.5, which must be a number from 0 to 1"},
      {"penalty_repeat", -1.0, "is -1, which must be a number from 0.01 to 100"},
      {"temp", absl::string_view("hot"), "is not a number"},
      {"top_k", true, "is not a number"},
  };
  for (const auto& [name, value, message] : refusals) {
    const std::string key = absl::StrCat("general.sampling.", name);
    GgufMetadata metadata = Metadata();
    metadata.Insert(key, value);
    const auto text = ModelText::FromGguf(metadata);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(text.status().message()),
                HasSubstr(absl::StrCat("metadata ", key, " ", message)));
  }
}

TEST(StoriesModel, BeginsATextWithBos) {
  auto file = MappedFile::Open("tests/goldens/stories/stories260K.f32.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  auto gguf = ParseGguf("stories260K", file->bytes());
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  auto text = ModelText::FromGguf(gguf->metadata);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ((*text)->vocabulary_size(), 512);
  EXPECT_THAT(*(*text)->EncodeText("Once upon a time"), ElementsAre(1, 403, 407, 261, 378));
  EXPECT_EQ((*text)->TokenBytes(403), " Once");
  EXPECT_TRUE((*text)->EndsGeneration(2));
}

}  // namespace
}  // namespace rempart::worker
