// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "worker/text/text.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Text(simdjson::dom::element element) { return std::string(std::string_view(element)); }

std::vector<int32_t> Ids(simdjson::dom::element element) {
  std::vector<int32_t> ids;
  for (int64_t id : element.get_array()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

// The 512-token SentencePiece vocabulary of stories260K with llama.cpp's ids for its prompts.
class StoriesTokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    fixture_ = parser_.load("tests/goldens/text/stories260K.vocabulary.json");
    metadata_.model = Text(fixture_["model"]);
    metadata_.add_space_prefix = bool(fixture_["add_space_prefix"]);
    for (auto token : fixture_["tokens"].get_array()) metadata_.tokens.push_back(Text(token));
    for (double score : fixture_["scores"].get_array()) metadata_.scores.push_back(score);
    metadata_.types = Ids(fixture_["types"]);
  }

  simdjson::dom::parser parser_;
  simdjson::dom::element fixture_;
  TokenizerMetadata metadata_;
};

// A byte-level vocabulary small enough to follow by hand.
TokenizerMetadata SmallByteLevel() {
  TokenizerMetadata metadata;
  metadata.model = "gpt2";
  metadata.pre = "smollm";
  metadata.tokens = {"<|end|>", "h",  "i", "Ġ", "hi", "Ġhi",   "1",
                     "2",       "12", "Ã", "©", "Ã©", "<tool>"};
  metadata.types = {3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4};
  metadata.merges = {"h i", "Ġ hi", "1 2", "Ã ©"};
  return metadata;
}

TEST_F(StoriesTokenizer, GivesTheIdsOfLlamaCpp) {
  auto tokenizer = Tokenizer::FromGguf(metadata_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  int cases = 0;
  for (auto item : fixture_["cases"].get_array()) {
    auto ids = (*tokenizer)->Encode(Text(item["text"]), SpecialTokens::kPlain);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, Ids(item["ids"])) << Text(item["text"]);
    ++cases;
  }
  EXPECT_EQ(cases, 4);
}

TEST_F(StoriesTokenizer, FallsBackToBytesAndReturnsEveryText) {
  auto tokenizer = Tokenizer::FromGguf(metadata_);
  ASSERT_TRUE(tokenizer.ok());
  std::mt19937 random(7);
  const std::vector<std::string> pieces = {"a",  " ",   "é",  "中",   "😀",
                                           "\n", "Zog", "  ", "</s>", "\t"};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = random() % 20; i >= 0; --i) text += pieces[random() % pieces.size()];
    auto ids = (*tokenizer)->Encode(text, SpecialTokens::kPlain);
    ASSERT_TRUE(ids.ok());
    std::string back;
    for (int32_t id : *ids) back += std::string((*tokenizer)->TokenBytes(id));
    EXPECT_EQ(back, " " + text);  // the space that this vocabulary puts before a text
  }
}

// Phi 3's tokens take the white space after them, in its tokenizer.json and in llama.cpp.
TEST_F(StoriesTokenizer, OfPhi3TakesTheLineBreaksOfItsTemplate) {
  const auto user = static_cast<int32_t>(metadata_.tokens.size());
  for (const char* token :
       {"<|user|>", "<|end|>", "<|endoftext|>", "<|system|>", "<|assistant|>"}) {
    metadata_.tokens.push_back(token);
    metadata_.scores.push_back(0);
    metadata_.types.push_back(3);
  }
  auto tokenizer = Tokenizer::FromGguf(metadata_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto encode = [&](absl::string_view text) {
    return *(*tokenizer)->Encode(text, SpecialTokens::kParsed);
  };
  const std::vector<int32_t> once = encode("Once");
  EXPECT_THAT(once, ElementsAre(403));
  EXPECT_THAT(encode("<|user|>\nOnce<|end|> \n <|user|>\n"),
              ElementsAre(user, 403, user + 1, user));
  const std::vector<int32_t> kept = encode("<|endoftext|>\nOnce");
  EXPECT_GT(kept.size(), 2u);
  metadata_.tokens.back() = "<|other|>";
  tokenizer = Tokenizer::FromGguf(metadata_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_GT(encode("<|user|>\nOnce").size(), 2u);
}

TEST_F(StoriesTokenizer, RefusesAScoreTableOfAnotherLength) {
  metadata_.scores.pop_back();
  auto tokenizer = Tokenizer::FromGguf(metadata_);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              HasSubstr("tokenizer.ggml.scores has 511 entries for 512 tokens"));
}

TEST(ByteLevelTokenizer, MergesInTheOrderOfTheMergesAndSplitsDigits) {
  auto tokenizer = Tokenizer::FromGguf(SmallByteLevel());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("hi hi", SpecialTokens::kPlain), ElementsAre(4, 5));
  EXPECT_THAT(*(*tokenizer)->Encode("12", SpecialTokens::kPlain), ElementsAre(6, 7));
  EXPECT_THAT(*(*tokenizer)->Encode("é", SpecialTokens::kPlain), ElementsAre(11));
  EXPECT_EQ((*tokenizer)->TokenBytes(11), "é");
  EXPECT_EQ((*tokenizer)->TokenBytes(9), "\xC3");
  EXPECT_EQ((*tokenizer)->vocabulary_size(), 13);
}

TEST(ByteLevelTokenizer, ReadsControlTokensOnlyWhenAskedAndUserDefinedOnesAlways) {
  auto tokenizer = Tokenizer::FromGguf(SmallByteLevel());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_THAT(*(*tokenizer)->Encode("hi<|end|>", SpecialTokens::kParsed), ElementsAre(4, 0));
  EXPECT_THAT(*(*tokenizer)->Encode("hi<tool>hi", SpecialTokens::kPlain), ElementsAre(4, 12, 4));
  auto plain = (*tokenizer)->Encode("hi<|end|>", SpecialTokens::kPlain);
  ASSERT_TRUE(plain.ok());
  for (int32_t id : *plain) EXPECT_NE(id, 0);
  EXPECT_TRUE((*tokenizer)->IsControl(0));
  EXPECT_FALSE((*tokenizer)->IsControl(12));
  EXPECT_EQ((*tokenizer)->TokenBytes(0), "");
  EXPECT_EQ((*tokenizer)->TokenSpelling(0), "<|end|>");
}

TEST(ByteLevelTokenizer, TreatsAKnownEndingAsControlWhateverItsDeclaredType) {
  TokenizerMetadata metadata = SmallByteLevel();
  metadata.types[0] = 4;
  auto tokenizer = Tokenizer::FromGguf(metadata);
  ASSERT_TRUE(tokenizer.ok());
  auto plain = (*tokenizer)->Encode("hi<|end|>", SpecialTokens::kPlain);
  ASSERT_TRUE(plain.ok());
  for (int32_t id : *plain) EXPECT_NE(id, 0);
}

TEST(ByteLevelTokenizer, ReportsInvalidUtf8WithItsPlace) {
  auto tokenizer = Tokenizer::FromGguf(SmallByteLevel());
  ASSERT_TRUE(tokenizer.ok());
  auto ids = (*tokenizer)->Encode("hi\xFFhi", SpecialTokens::kPlain);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ids.status().message(), "the text is not valid UTF-8 at byte 2");
}

TEST(ByteLevelTokenizer, KnowsNoTokensOutsideTheVocabulary) {
  auto tokenizer = Tokenizer::FromGguf(SmallByteLevel());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->TokenBytes(13), "");
  EXPECT_EQ((*tokenizer)->TokenBytes(-1), "");
  EXPECT_FALSE((*tokenizer)->IsControl(-1));
}

TEST(ByteLevelTokenizer, EncodesLongRunsOfOneCharacter) {
  for (const char* pre : {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default"}) {
    TokenizerMetadata metadata = SmallByteLevel();
    metadata.pre = pre;
    auto tokenizer = Tokenizer::FromGguf(metadata);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const char* piece : {" ", "h", "\n", "1", "é", "\u0301"}) {
      std::string text;
      while (text.size() < 200000) text += piece;
      EXPECT_TRUE((*tokenizer)->Encode(text, SpecialTokens::kPlain).ok()) << pre << piece;
    }
  }
}

// That `pre` gives each of the golden's texts its expected ids, with the golden's vocabulary.
void SplitsAs(const std::string& pre, simdjson::dom::element golden, simdjson::dom::element ids_of,
              size_t cases_expected) {
  TokenizerMetadata metadata;
  metadata.model = "gpt2";
  metadata.pre = pre;
  for (auto token : golden["tokens"].get_array()) metadata.tokens.push_back(Text(token));
  for (auto merge : golden["merges"].get_array()) metadata.merges.push_back(Text(merge));
  const auto tokenizer = Tokenizer::FromGguf(metadata);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto texts = golden["texts"].get_array();
  size_t cases = 0;
  for (auto expected : ids_of.get_array()) {
    const std::string text = Text(texts.at(cases++));
    const auto ids = (*tokenizer)->Encode(text, SpecialTokens::kPlain);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(expected)) << text;
  }
  EXPECT_EQ(cases, cases_expected);
}

// tests/goldens/make_gguf_splits.py says how its vocabulary shows where a text is split.
class GgufSplits : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(GgufSplits, AreThoseOfTheModelsOwnTokenizers) {
  const auto [pre, golden_name] = GetParam();
  simdjson::dom::parser parser;
  const simdjson::dom::element golden =
      parser.load("tests/goldens/tokenizers/gguf_splits.json").value();
  SplitsAs(pre, golden, golden["ids"][golden_name], 100);
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufSplits,
    ::testing::Values(std::pair("gpt-2", "gpt-2"), std::pair("smollm", "smollm"),
                      std::pair("llama-bpe", "llama-bpe"), std::pair("llama3", "llama-bpe"),
                      std::pair("dbrx", "llama-bpe"), std::pair("qwen2", "qwen2"),
                      std::pair("deepseek-r1-qwen", "qwen2"), std::pair("tekken", "tekken"),
                      std::pair("gpt-4o", "gpt-4o")),
    [](const auto& info) {
      std::string name = info.param.first;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

// tests/goldens/make_gguf_default.py
TEST(GgufDefaultSplit, OfAFileThatNamesNoneAreThoseOfLlamaCpp) {
  simdjson::dom::parser parser;
  const simdjson::dom::element golden =
      parser.load("tests/goldens/tokenizers/gguf_default_split.json").value();
  for (const char* pre : {"", "default"}) SplitsAs(pre, golden, golden["ids"], 120);
}

struct Refusal {
  std::string what;
  void (*change)(TokenizerMetadata&);
  std::string message;
};

TEST(TokenizerMetadata, RefusesWhatItCannotRun) {
  const std::vector<Refusal> refusals = {
      {"no tokens", [](TokenizerMetadata& m) { m.tokens.clear(); }, "tokenizer.ggml.tokens"},
      {"no merges", [](TokenizerMetadata& m) { m.merges.clear(); }, "tokenizer.ggml.merges"},
      {"a merge of one", [](TokenizerMetadata& m) { m.merges[1] = "hi"; },
       "tokenizer.ggml.merges[1]"},
      {"unknown model", [](TokenizerMetadata& m) { m.model = "rwkv"; },
       "tokenizer.ggml.model is 'rwkv'"},
      {"unknown pre", [](TokenizerMetadata& m) { m.pre = "klingon"; },
       "tokenizer.ggml.pre is 'klingon'"},
      {"a family that is not served", [](TokenizerMetadata& m) { m.pre = "command-r"; },
       "tokenizer.ggml.pre is 'command-r'; this version knows default, gpt-2, smollm"},
      {"no normal token", [](TokenizerMetadata& m) { m.types.assign(m.tokens.size(), 3); },
       "tokenizer.ggml.tokens has no token of text: tokenizer.ggml.token_type calls none normal"},
      {"a token twice", [](TokenizerMetadata& m) { m.tokens[7] = "h"; },
       "tokenizer.ggml.tokens[7] is 'h', as tokenizer.ggml.tokens[1] is"},
      {"a merge that makes no token", [](TokenizerMetadata& m) { m.merges[0] = "i h"; },
       "tokenizer.ggml.merges[0] is 'i h', but tokenizer.ggml.tokens has no 'ih'"},
      {"a merge of no token", [](TokenizerMetadata& m) { m.merges[2] = "1 3"; },
       "tokenizer.ggml.merges[2] is '1 3', but tokenizer.ggml.tokens has no '3'"},
      {"misspelt byte", [](TokenizerMetadata& m) { m.types[1] = 6; },
       "tokenizer.ggml.tokens[1] is of type byte"},
  };
  for (const Refusal& refusal : refusals) {
    TokenizerMetadata metadata = SmallByteLevel();
    refusal.change(metadata);
    auto tokenizer = Tokenizer::FromGguf(metadata);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << refusal.what;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(refusal.message));
  }
}

constexpr char kTokenizerJson[] = R"json({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [
    {"id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 8, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": false}],
  "normalizer": null,
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
    "vocab": {"<|end|>": 0, "h": 1, "i": 2, "Ġ": 3, "hi": 4, "Ġhi": 5, "1": 6, "2": 7},
    "merges": ["h i", "Ġ hi"]}})json";

TEST(TokenizerJson, EncodesAsTheGgufVocabularyDoes) {
  auto tokenizer = Tokenizer::FromTokenizerJson(kTokenizerJson);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("hi hi12", SpecialTokens::kPlain), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(*(*tokenizer)->Encode("hi<|end|>", SpecialTokens::kParsed), ElementsAre(4, 0));
  EXPECT_THAT(*(*tokenizer)->Encode("<tool>hi", SpecialTokens::kPlain), ElementsAre(8, 4));
  EXPECT_EQ((*tokenizer)->TokenBytes(5), " hi");
  EXPECT_EQ((*tokenizer)->TokenBytes(0), "");
}

// As Hugging Face's tokenizers does.
TEST(TokenizerJson, AddedTokensTakeTheWhiteSpaceThatTheySay) {
  const std::string json = absl::StrReplaceAll(
      kTokenizerJson, {{R"("<|end|>", "single_word": false, "lstrip": false, "rstrip": false)",
                        R"("<|end|>", "single_word": false, "lstrip": false, "rstrip": true)"},
                       {R"("<tool>", "single_word": false, "lstrip": false, "rstrip": false)",
                        R"("<tool>", "single_word": false, "lstrip": true, "rstrip": false)"}});
  auto tokenizer = Tokenizer::FromTokenizerJson(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto encode = [&](absl::string_view text) {
    return *(*tokenizer)->Encode(text, SpecialTokens::kParsed);
  };
  EXPECT_THAT(encode("hi<|end|> \n hi"), ElementsAre(4, 0, 4));
  EXPECT_THAT(encode("hi <|end|>hi"), ElementsAre(4, 3, 0, 4));
  EXPECT_THAT(encode("hi <tool> hi"), ElementsAre(4, 8, 5));
  EXPECT_THAT(encode("<|end|>  <tool> "), ElementsAre(0, 8, 3));
  auto unchanged = Tokenizer::FromTokenizerJson(kTokenizerJson);
  EXPECT_THAT(*(*unchanged)->Encode("hi <tool> hi", SpecialTokens::kParsed),
              ElementsAre(4, 3, 8, 5));
}

TEST(TokenizerJson, RefusesWhatIsNotATokenizer) {
  for (const char* json : {"", "{", "[]", "{\"model\": 3}"}) {
    auto tokenizer = Tokenizer::FromTokenizerJson(json);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json"));
  }
}

// transformers calls a saved tokenizer without either.
TEST(TokenizerJson, TextsAreNeitherCutNorFilledUp) {
  const std::string json = absl::StrReplaceAll(
      kTokenizerJson,
      {{R"("truncation": null, "padding": null)",
        R"("truncation": {"max_length": 1, "direction": "Right", "strategy": "LongestFirst", "stride": 0},
           "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                       "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"})"}});
  auto tokenizer = Tokenizer::FromTokenizerJson(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("hi hi12", SpecialTokens::kPlain), ElementsAre(4, 5, 6, 7));
}

TEST(TokenizerJson, RefusesTokensThatContradictEachOther) {
  const std::vector<std::array<std::string, 3>> refusals = {
      {R"({"id": 8, "content": "<tool>")", R"({"id": 7, "content": "<tool>")",
       "added_tokens gives '<tool>' the id 7, which model.vocab gives to another token"},
      {R"({"id": 8, "content": "<tool>")", R"({"id": 0, "content": "<tool>")",
       "added_tokens gives the id 0 to '<|end|>' and '<tool>'"},
      {R"({"id": 8, "content": "<tool>")", R"({"id": 8, "content": "<|end|>")",
       "added_tokens gives '<|end|>' the ids 0 and 8"},
      {R"({"id": 8, "content": "<tool>")", R"({"id": 99999999, "content": "<tool>")",
       "token id 99999999 is out of range"},
      {R"({"id": 8, "content": "<tool>")", R"({"id": -8, "content": "<tool>")", "tokenizer.json"},
      {R"("1": 6, "2": 7})", R"("1": 6, "2": 99999999})", "token id 99999999 is out of range"},
      {R"("vocab": {"<|end|>": 0, "h": 1, "i": 2, "Ġ": 3, "hi": 4, "Ġhi": 5, "1": 6, "2": 7})",
       R"("vocab": {})", "model.vocab is empty"},
  };
  for (const auto& [old, replacement, message] : refusals) {
    const std::string json = absl::StrReplaceAll(kTokenizerJson, {{old, replacement}});
    ASSERT_NE(json, kTokenizerJson) << old;
    auto tokenizer = Tokenizer::FromTokenizerJson(json);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(message));
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json: "));
  }
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

// tests/goldens/make_tokenizers.py says how its files and ids were made.
class OtherFormats : public ::testing::Test {
 protected:
  void SetUp() override { golden_ = parser_.load(std::string(kFolder) + "golden.json"); }

  void GivesTheIdsOf(const char* key, const Tokenizer& tokenizer) {
    EXPECT_EQ(tokenizer.vocabulary_size(), int64_t(golden_[key]["size"]));
    auto texts = golden_["texts"].get_array();
    size_t cases = 0;
    for (auto expected : golden_[key]["ids"].get_array()) {
      const std::string text = Text(texts.at(cases++));
      const auto ids = tokenizer.Encode(text, SpecialTokens::kPlain);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, Ids(expected)) << key << ": " << text;
      std::string back;
      for (const int32_t id : *ids) back += std::string(tokenizer.TokenBytes(id));
      EXPECT_THAT(back, ::testing::EndsWith(text));
    }
    EXPECT_EQ(cases, 61u);
  }

  static constexpr char kFolder[] = "tests/goldens/tokenizers/";
  simdjson::dom::parser parser_;
  simdjson::dom::element golden_;
};

TEST_F(OtherFormats, TekkenGivesTheIdsOfMistralCommon) {
  for (const char* version : {"v3", "v11"}) {
    const auto tokenizer =
        Tokenizer::FromTekken(ReadFile(std::string(kFolder) + version + ".tekken.json"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string key = std::string("tekken_") + version;
    GivesTheIdsOf(key.c_str(), **tokenizer);
    int32_t id = 0;
    for (auto spelling : golden_[key]["spellings"].get_array()) {
      EXPECT_EQ((*tokenizer)->TokenSpelling(id), Text(spelling));
      EXPECT_TRUE((*tokenizer)->IsControl(id++));
    }
    EXPECT_THAT(*(*tokenizer)->Encode("[INST]</s>", SpecialTokens::kParsed), ElementsAre(3, 2));
  }
}

TEST_F(OtherFormats, SentencePieceGivesTheIdsOfItsLibrary) {
  for (const char* name : {"prefix", "plain"}) {
    const auto tokenizer = Tokenizer::FromSentencePiece(
        ReadFile(std::string(kFolder) + name + ".tokenizer.model"), "{}");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    GivesTheIdsOf((std::string("sentencepiece_") + name).c_str(), **tokenizer);
  }
}

TEST_F(OtherFormats, RefuseWhatTheyCannotHonour) {
  const auto tekken = [](const std::string& old, const std::string& replacement) {
    std::string json = ReadFile(std::string(kFolder) + "v11.tekken.json");
    json.replace(json.find(old), old.size(), replacement);
    return std::string(Tokenizer::FromTekken(json).status().message());
  };
  EXPECT_THAT(tekken("\"v11\"", "\"11\""), HasSubstr("config.version is \"11\""));
  EXPECT_THAT(tekken("\"special_tokens\"", "\"other\""), HasSubstr("special_tokens is missing"));
  EXPECT_THAT(tekken("\"default_vocab_size\":510", "\"default_vocab_size\":9999"),
              HasSubstr("vocab has 496 entries, but config asks for 9975"));
  EXPECT_THAT(tekken("\"default_vocab_size\":510", "\"default_vocab_size\":100"),
              HasSubstr("config.default_vocab_size is 100, too few"));
  EXPECT_THAT(tekken("\"rank\":7,", "\"rank\":8,"), HasSubstr("vocab[7].rank is not 7"));
  EXPECT_THAT(tekken("\"AQ==\"", "\"?\""), HasSubstr("vocab[1].token_bytes"));
  EXPECT_THAT(tekken("\"pattern\":\"", "\"pattern\":\"("), HasSubstr("config.pattern"));
  const auto piece = [](const std::string& model) {
    return std::string(Tokenizer::FromSentencePiece(model, "{}").status().message());
  };
  EXPECT_THAT(piece(ReadFile(std::string(kFolder) + "unigram.tokenizer.model")),
              HasSubstr("trainer_spec.model_type: unigram is not served, only BPE"));
  const std::string whole = ReadFile(std::string(kFolder) + "plain.tokenizer.model");
  EXPECT_THAT(piece(whole.substr(0, whole.size() / 2)), HasSubstr("tokenizer.model:"));
  EXPECT_THAT(piece(""), HasSubstr("is missing: the file is damaged"));
  // ModelProto{trainer_spec{model_type: BPE}, normalizer_spec{}}: the defaults change text.
  EXPECT_THAT(piece(std::string("\x12\x02\x18\x02\x1a\x00", 6)),
              HasSubstr("normalizer_spec.remove_extra_whitespaces"));
  // ... {precompiled_charsmap: "x"}
  EXPECT_THAT(piece(std::string("\x12\x02\x18\x02\x1a\x03\x12\x01x", 9)),
              HasSubstr("normalizer_spec.precompiled_charsmap"));
}

}  // namespace
}  // namespace rempart::worker
