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
  // With what `metadata` has already instead of its own.
  GgufMetadata Metadata(GgufMetadata metadata = {}) {
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

  // A vocabulary of `tokens`, which are not types_.size(); without merges that they do not have.
  absl::StatusOr<std::unique_ptr<ModelText>> Of(std::vector<uint8_t> types, GgufStrings tokens) {
    types_ = std::move(types);
    tokens.insert(tokens.end(), {"h", "i", "hi"});
    GgufMetadata metadata;
    metadata.Insert("tokenizer.ggml.tokens", std::move(tokens));
    return ModelText::FromGguf(Metadata(std::move(metadata)));
  }
  std::string Refusal(absl::string_view key, GgufValue value) {
    GgufMetadata metadata;
    metadata.Insert(key, std::move(value));
    const auto text = ModelText::FromGguf(Metadata(std::move(metadata)));
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << key;
    return std::string(text.status().message());
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

TEST_F(ChatModel, AnEmptyTemplateIsNone) {
  GgufMetadata metadata = Metadata();
  metadata.Insert("tokenizer.chat_template", absl::string_view(""));
  auto text = ModelText::FromGguf(metadata);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(std::string((*text)->EncodeChat("[]", "", true).status().message()),
              HasSubstr("no chat template: use /v1/completions"));
}

// Names that llama.cpp ends a text at, whatever the file declares.
TEST_F(ChatModel, EndsAtTheTokensThatEndByTheirName) {
  for (const char* name :
       {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
        "<end_of_turn>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<EOT>",
        "_<EOT>", "[EOT]", "[EOS]", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}) {
    for (const uint8_t type : {3, 4}) {  // control, user-defined
      const auto text = Of({3, 3, type, 1, 1, 1}, {"a", "b", name});
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_TRUE((*text)->EndsGeneration(2)) << name << " of type " << int{type};
      EXPECT_FALSE((*text)->EndsGeneration(0)) << name;
    }
  }
  const auto other = Of({3, 3, 3, 1, 1, 1}, {"a", "b", "<|other|>"});
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE((*other)->EndsGeneration(2));
}

// Of type 1, and in files without types, all are normal tokens.
TEST_F(ChatModel, AMarkerEndsATextEvenWhereItIsCalledNormalButWhatMayBeTextDoesNot) {
  const auto marker = Of({3, 3, 1, 1, 1, 1}, {"a", "b", "<|im_end|>"});
  ASSERT_TRUE(marker.ok()) << marker.status();
  EXPECT_TRUE((*marker)->EndsGeneration(2));
  EXPECT_EQ((*marker)->TokenBytes(2), "");
  EXPECT_THAT(*(*marker)->EncodeText("hi<|im_end|>"), ElementsAre(5, 2));
  const auto html = Of({3, 3, 1, 1, 1, 1}, {"a", "b", "</s>"});
  ASSERT_TRUE(html.ok()) << html.status();
  EXPECT_FALSE((*html)->EndsGeneration(2));
  EXPECT_EQ((*html)->TokenBytes(2), "</s>");
}

TEST_F(ChatModel, EndsAtTheTokensThatItsKeysName) {
  for (const char* key : {"eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"}) {
    const std::string name = absl::StrCat("tokenizer.ggml.", key, "_token_id");
    GgufMetadata metadata;
    metadata.Insert(name, uint64_t{7});
    const auto text = ModelText::FromGguf(Metadata(std::move(metadata)));
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_TRUE((*text)->EndsGeneration(7)) << key;
    EXPECT_FALSE((*text)->EndsGeneration(6)) << key;
    EXPECT_THAT(Refusal(name, uint64_t{8}),
                HasSubstr(name + " is 8, outside the vocabulary of 8 tokens"));
    EXPECT_THAT(Refusal(name, absl::string_view("7")),
                HasSubstr("metadata " + name + " is not a non-negative integer"));
  }
}

// <unk>, <s>, </s> and then pieces, as llama.cpp reads such a file.
TEST(SentencePieceModel, HasLlamasPlacesOfBosAndEosWhereTheFileNamesNone) {
  std::vector<uint8_t> types = {2, 3, 3, 1};
  const std::vector<uint8_t> scores(types.size());
  const auto read = [&] {
    GgufMetadata metadata;
    metadata.Insert("tokenizer.ggml.model", absl::string_view("llama"));
    metadata.Insert("tokenizer.ggml.tokens", GgufStrings{"<unk>", "<start>", "<stop>", "▁a"});
    metadata.Insert("tokenizer.ggml.scores",
                    GgufNumbers{GgufType::kInt8, scores.size(), scores.data()});
    metadata.Insert("tokenizer.ggml.token_type",
                    GgufNumbers{GgufType::kInt8, types.size(), types.data()});
    return *ModelText::FromGguf(metadata);
  };
  EXPECT_THAT(*read()->EncodeText("a"), ElementsAre(1, 3));
  EXPECT_TRUE(read()->EndsGeneration(2));
  types[1] = types[2] = 1;
  EXPECT_THAT(*read()->EncodeText("a"), ElementsAre(3)) << "they are words";
  EXPECT_FALSE(read()->EndsGeneration(2));
}

TEST_F(ChatModel, RefusesDamagedVocabulariesByTheirKeys) {
  const std::vector<uint8_t> numbers = {3, 3, 1, 1, 9, 1, 1, 255};
  const GgufNumbers bytes = {GgufType::kUint8, numbers.size(), numbers.data()};
  const GgufNumbers few = {GgufType::kUint8, 3, numbers.data()};
  const GgufStrings words = {"h", "i"};
  const std::vector<std::tuple<const char*, GgufValue, const char*>> refusals = {
      {"model", uint64_t{1}, " is not a string"},
      {"model", absl::string_view("\xff"), " is not UTF-8"},
      {"pre", bytes, " is not a string"},
      {"tokens", bytes, " is not an array of strings"},
      {"tokens", absl::string_view("h"), " is not an array of strings"},
      {"tokens", GgufStrings{}, " is empty"},
      {"tokens", GgufStrings{"a", "b", "u", "h", "i", "hi", ":", "h"},
       "[7] is 'h', as tokenizer.ggml.tokens[3] is"},
      {"merges", bytes, " is not an array of strings"},
      {"merges", GgufStrings{}, " is missing or empty"},
      {"merges", GgufStrings{"h i", "hi"}, "[1] is not a pair of tokens"},
      {"merges", GgufStrings{"h i", "hi u"},
       "[1] is 'hi u', but tokenizer.ggml.tokens has no 'hiu'"},
      {"merges", GgufStrings{"zz i"}, "[0] is 'zz i', but tokenizer.ggml.tokens has no 'zz'"},
      {"merges", GgufStrings{"h yy"}, "[0] is 'h yy', but tokenizer.ggml.tokens has no 'yy'"},
      {"token_type", words, " is not an array of integers"},
      {"token_type", few, " has 3 entries for 8 tokens"},
      {"token_type", bytes, "[4] is 9, must be 0 (undefined), 1 (normal)"},
      {"scores", words, " is not an array of numbers"},
      {"add_bos_token", uint64_t{1}, " is not a boolean"},
      {"add_space_prefix", words, " is not a boolean"},
      {"bos_token_id", bytes, " is not a non-negative integer"},
      {"eos_token_id", int64_t{-1}, " is not a non-negative integer"},
  };
  for (const auto& [name, value, message] : refusals) {
    const std::string key = absl::StrCat("tokenizer.ggml.", name);
    EXPECT_THAT(Refusal(key, value), HasSubstr(key + message));
  }
  EXPECT_THAT(Refusal("tokenizer.chat_template", words),
              HasSubstr("metadata tokenizer.chat_template is not a string"));
  EXPECT_THAT(Refusal("tokenizer.chat_template", absl::string_view("{% if %}")),
              HasSubstr("metadata tokenizer.chat_template: the chat template does not parse"));
  types_.push_back(1);
  EXPECT_THAT(Refusal("general.name", true), HasSubstr("token_type has 9 entries for 8 tokens"));
}

TEST(DamagedMetadata, WithoutAVocabularyIsRefusedByTheKey) {
  GgufMetadata metadata;
  EXPECT_THAT(std::string(ModelText::FromGguf(metadata).status().message()),
              HasSubstr("metadata tokenizer.ggml.model is missing"));
  metadata.Insert("tokenizer.ggml.model", absl::string_view("gpt2"));
  EXPECT_THAT(std::string(ModelText::FromGguf(metadata).status().message()),
              HasSubstr("metadata tokenizer.ggml.tokens is missing"));
  metadata.Insert("tokenizer.ggml.tokens", GgufStrings{"\xff", "b"});
  EXPECT_THAT(std::string(ModelText::FromGguf(metadata).status().message()),
              HasSubstr("tokenizer.ggml.merges is missing"));
  metadata.Insert("tokenizer.ggml.merges", GgufStrings{"\xff b"});
  EXPECT_THAT(std::string(ModelText::FromGguf(metadata).status().message()),
              HasSubstr("tokenizer.ggml.merges[0] is '\xEF\xBF\xBD b'"));
}

TEST_F(ChatModel, RefusesABosThatNoTemplateCouldSpell) {
  const auto text = Of({3, 3, 1, 1, 1, 1}, {"\xff", "b", "c"});
  EXPECT_THAT(std::string(text.status().message()),
              HasSubstr("tokenizer.ggml.bos_token_id is 0, a token whose spelling is not UTF-8"));
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
      {"temp", nan, "is nan; it must be finite"},
      {"top_p", 0.0, "is 0, which must be a number from 1e-06 to 1"},
      {"top_k", int64_t{-2}, "is -2, which must be a number from -1"},
      {"min_p", 1.5, "is 1.5, which must be a number from 0 to 1"},
      {"penalty_repeat", -1.0, "is -1, which must be a number from 0.01 to 100"},
      {"temp", absl::string_view("hot"), "is not a number"},
      {"top_k", true, "is not a number"},
  };
  for (const auto& [name, value, message] : refusals) {
    const std::string key = absl::StrCat("general.sampling.", name);
    EXPECT_THAT(Refusal(key, value), HasSubstr(absl::StrCat("metadata ", key, " ", message)));
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
