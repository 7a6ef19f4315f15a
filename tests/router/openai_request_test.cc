// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "router/api/openai/fields.h"
#include "router/api/openai/requests.h"

namespace rempart::router::openai {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ApiRequest Accepted(const std::variant<ApiRequest, ApiError>& read) {
  if (const ApiError* error = std::get_if<ApiError>(&read)) {
    ADD_FAILURE() << error->message;
    return {};
  }
  return std::get<ApiRequest>(read);
}

// A chat request with these further members.
std::string Chat(const std::string& members) {
  return absl::StrCat(R"({"model":"m","messages":[{"role":"user","content":"hi"}])",
                      members.empty() ? "" : ",", members, "}");
}
std::string Messages(const std::string& messages) {
  return absl::StrCat(R"({"model":"m","messages":)", messages, "}");
}
std::string Completion(const std::string& members) {
  return absl::StrCat(R"({"model":"m",)", members, "}");
}

TEST(ChatRequest, ReadsEverythingThatIsApplied) {
  const ApiRequest request = Accepted(ReadChatRequest(Chat(
      R"("temperature":0.5,"top_p":0.25,"top_k":40,"min_p":0.125,"frequency_penalty":-2,
         "presence_penalty":2,"repetition_penalty":1.5,"seed":-7,"logit_bias":{"15":-100},
         "logprobs":true,"top_logprobs":3,"max_completion_tokens":9,"max_tokens":5,"n":2,
         "stop":["a","b"],"stream":true,"stream_options":{"include_usage":true},
         "ignore_eos":true,"chat_template_kwargs":{"x":1}, "user":"u","metadata":{"a":"b"},
         "store":false,"service_tier":"auto","tools":[],"tool_choice":"none",
         "response_format":{"type":"text"},"modalities":["text"])")));
  EXPECT_EQ(request.served_name, "m");
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_p, 0.25f);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_EQ(request.sampling.min_p, 0.125f);
  EXPECT_EQ(request.sampling.frequency_penalty, -2.f);
  EXPECT_EQ(request.sampling.presence_penalty, 2.f);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request.sampling.seed, -7);
  EXPECT_THAT(request.sampling.logit_bias, ElementsAre(std::make_pair(15, -100.f)));
  EXPECT_EQ(request.sampling.top_logprobs, 3);
  EXPECT_TRUE(request.sampling.ignore_eos);
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_EQ(request.n, 2);
  EXPECT_THAT(request.stop, ElementsAre("a", "b"));
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
  EXPECT_EQ(request.template_variables_json, R"({"x":1})");
}

TEST(ChatRequest, AbsentStaysAbsent) {
  const ApiRequest request =
      Accepted(ReadChatRequest(Chat(R"("temperature":null,"stop":null,"tools":null,"n":null)")));
  EXPECT_EQ(request.sampling.temperature, std::nullopt);
  EXPECT_EQ(request.sampling.top_logprobs, std::nullopt);
  EXPECT_EQ(request.sampling.seed, std::nullopt);
  EXPECT_EQ(request.max_tokens, 0);
  EXPECT_EQ(request.n, 1);
  EXPECT_FALSE(request.stream);
}

TEST(ChatRequest, ReadsConversations) {
  const ApiRequest request = Accepted(ReadChatRequest(Messages(
      R"([{"role":"developer","content":"be brief"},
          {"role":"user","name":"ann","content":[{"type":"text","text":"a"},
                                                  {"type":"text","text":"\u00e9"}]},
          {"role":"assistant","content":null,"refusal":null,
           "tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},
          {"role":"tool","tool_call_id":"c1","content":"4"}])")));
  ASSERT_EQ(request.prompts.size(), 1u);
  const std::vector<Message>& messages = request.prompts[0].messages;
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "a\u00e9");
  EXPECT_EQ(messages[1].name, "ann");
  EXPECT_TRUE(messages[2].content_is_null);
  EXPECT_THAT(messages[2].tool_calls_json, HasSubstr(R"("arguments":"{}")"));
  EXPECT_EQ(messages[3].tool_call_id, "c1");
}

struct Refused {
  std::string body;
  const char* param;
  const char* code;
  const char* says;
};

void ExpectRefused(const Refused& row, const std::variant<ApiRequest, ApiError>& read) {
  const ApiError* error = std::get_if<ApiError>(&read);
  ASSERT_NE(error, nullptr) << "accepted: " << row.body;
  EXPECT_EQ(error->status, 400) << row.body;
  EXPECT_EQ(error->type, "invalid_request_error") << row.body;
  EXPECT_EQ(error->param, row.param) << row.body << " " << error->message;
  EXPECT_EQ(error->code, row.code) << row.body << " " << error->message;
  EXPECT_THAT(error->message, HasSubstr(row.says)) << row.body;
}

TEST(ChatRequest, RefusesWithTheParameter) {
  const std::vector<Refused> rows = {
      {"", "", "invalid_json", "not valid JSON"},
      {"[]", "", "invalid_json", "must be a JSON object"},
      {"{\"model\":\"\xff\"}", "", "invalid_json", "not valid UTF-8"},
      {R"({"messages":[{"role":"user","content":"x"}]})", "model", "missing_required_parameter",
       "model"},
      {R"({"model":"m"})", "messages", "missing_required_parameter", "messages"},
      {Chat(R"("colour":1)"), "colour", "unknown_parameter", "'colour'"},
      {Chat(R"("model":3)"), "model", "invalid_type", "expected a string, but got an integer"},
      {Chat(R"("temperature":"hot")"), "temperature", "invalid_type", "expected a number"},
      {Chat(R"("temperature":2.5)"), "temperature", "invalid_value", "from 0 to 2"},
      {Chat(R"("top_p":-0.1)"), "top_p", "invalid_value", "from 0 to 1"},
      {Chat(R"("n":0)"), "n", "invalid_value", "from 1 to 128"},
      {Chat(R"("n":129)"), "n", "invalid_value", "from 1 to 128"},
      {Chat(R"("n":1.5)"), "n", "invalid_type", "expected an integer"},
      {Chat(R"("max_tokens":0)"), "max_tokens", "invalid_value", "from 1"},
      {Chat(R"("max_tokens":18446744073709551615)"), "max_tokens", "invalid_value", "at most"},
      {Chat(R"("stop":["1","2","3","4","5"])"), "stop", "invalid_value", "at most 4"},
      {Chat(R"("stop":"")"), "stop", "invalid_value", "empty"},
      {Chat(R"("stop":[1])"), "stop[0]", "invalid_type", "expected a string"},
      {Chat(R"("logit_bias":{"x":1})"), "logit_bias", "invalid_value", "not a token id"},
      {Chat(R"("logit_bias":{"1":101})"), "logit_bias.1", "invalid_value", "from -100 to 100"},
      {Chat(R"("top_logprobs":2)"), "top_logprobs", "invalid_value", "'logprobs' is true"},
      {Chat(R"("logprobs":true,"top_logprobs":21)"), "top_logprobs", "invalid_value", "0 to 20"},
      {Chat(R"("stream_options":{"include_usage":true})"), "stream_options", "invalid_value",
       "'stream' is true"},
      {Chat(R"("stream":true,"stream_options":{"more":true})"), "stream_options.more",
       "invalid_value", "Unknown parameter"},
      {Chat(R"("tools":[{"type":"function"}])"), "tools", "unsupported_parameter", "tool calling"},
      {Chat(R"("response_format":{"type":"json_schema"})"), "response_format",
       "unsupported_parameter", "constrained output"},
      {Chat(R"("store":true)"), "store", "unsupported_parameter", "not stored"},
      {Chat(R"("service_tier":"priority")"), "service_tier", "unsupported_parameter", "one tier"},
      {Chat(R"("messages":[{"role":"user","content":"y"}])"), "messages", "invalid_value", "twice"},
      {Messages("[]"), "messages", "invalid_value", "at least one"},
      {Messages(R"([{"content":"x"}])"), "messages[0].role", "missing_required_parameter", ""},
      {Messages(R"([{"role":"wizard","content":"x"}])"), "messages[0].role", "invalid_value",
       "'wizard'"},
      {Messages(R"([{"role":"user"}])"), "messages[0].content", "missing_required_parameter", ""},
      {Messages(R"([{"role":"user","content":7}])"), "messages[0].content", "invalid_value", ""},
      {Messages(R"([{"role":"user","content":[{"type":"image_url"}]}])"),
       "messages[0].content[0].type", "unsupported_value", "image_url"},
      {Messages(R"([{"role":"user","content":"x","mood":1}])"), "messages[0].mood",
       "unknown_parameter", ""},
      {Messages(R"([{"role":"tool","content":"x"}])"), "messages[0].tool_call_id",
       "missing_required_parameter", ""},
      {Messages(R"([{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}])"),
       "messages[0].tool_calls[0].function.arguments", "missing_required_parameter", ""},
  };
  for (const Refused& row : rows) ExpectRefused(row, ReadChatRequest(row.body));
}

TEST(CompletionRequest, ReadsPromptsOfEveryShape) {
  const ApiRequest text = Accepted(ReadCompletionRequest(Completion(R"("prompt":"a")")));
  ASSERT_EQ(text.prompts.size(), 1u);
  EXPECT_EQ(text.prompts[0].text, "a");
  EXPECT_EQ(text.max_tokens, 16);
  const ApiRequest texts = Accepted(
      ReadCompletionRequest(Completion(R"("prompt":["a","b"],"n":3,"echo":true,"max_tokens":4)")));
  ASSERT_EQ(texts.prompts.size(), 2u);
  EXPECT_EQ(texts.prompts[1].text, "b");
  EXPECT_TRUE(texts.echo);
  EXPECT_EQ(texts.n, 3);
  EXPECT_EQ(texts.max_tokens, 4);
  const ApiRequest ids = Accepted(ReadCompletionRequest(Completion(R"("prompt":[1,2,3])")));
  ASSERT_EQ(ids.prompts.size(), 1u);
  EXPECT_EQ(ids.prompts[0].kind, Prompt::Kind::kTokenIds);
  EXPECT_THAT(ids.prompts[0].token_ids, ElementsAre(1, 2, 3));
  const ApiRequest lists =
      Accepted(ReadCompletionRequest(Completion(R"("prompt":[[1],[2,3]],"logprobs":2)")));
  ASSERT_EQ(lists.prompts.size(), 2u);
  EXPECT_THAT(lists.prompts[1].token_ids, ElementsAre(2, 3));
  EXPECT_EQ(lists.sampling.top_logprobs, 2);
}

TEST(CompletionRequest, RefusesWithTheParameter) {
  const std::vector<Refused> rows = {
      {Completion(R"("n":1)"), "prompt", "missing_required_parameter", "prompt"},
      {Completion(R"("prompt":[])"), "prompt", "invalid_value", "empty"},
      {Completion(R"("prompt":[[]])"), "prompt[0]", "invalid_value", "empty"},
      {Completion(R"("prompt":[1,"a"])"), "prompt[1]", "invalid_type", "integer"},
      {Completion(R"("prompt":[-1])"), "prompt[0]", "invalid_value", "from 0"},
      {Completion(R"("prompt":{"a":1})"), "prompt", "invalid_value", "token ids"},
      {Completion(R"("prompt":"a","logprobs":6)"), "logprobs", "invalid_value", "0 to 5"},
      {Completion(R"("prompt":"a","best_of":2)"), "best_of", "unsupported_parameter", "'n'"},
      {Completion(R"("prompt":"a","suffix":"b")"), "suffix", "unsupported_parameter", "infilling"},
      {Completion(R"("prompt":"a","messages":[])"), "messages", "unknown_parameter", ""},
      {Completion(R"("prompt":"a","echo":true,"logprobs":1)"), "echo", "unsupported_parameter", ""},
  };
  for (const Refused& row : rows) ExpectRefused(row, ReadCompletionRequest(row.body));
}

TEST(Fields, EveryRowSaysWhatBecomesOfIt) {
  for (const auto fields : {ChatFields(), CompletionFields()}) {
    std::set<absl::string_view> names;
    const auto check = [&](const Field& field) {
      EXPECT_TRUE(names.insert(field.name).second) << field.name << " is named twice";
      if (field.rule == FieldRule::kApplied) {
        EXPECT_NE(field.read, nullptr) << field.name;
      } else {
        EXPECT_FALSE(field.reason.empty()) << field.name;
      }
    };
    for (const Field& field : fields) check(field);
    for (const Field& field : SharedFields()) check(field);
  }
}

}  // namespace
}  // namespace rempart::router::openai
