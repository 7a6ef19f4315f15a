// SPDX-License-Identifier: Apache-2.0
#include "router/api/openai/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/api/json_text.h"

namespace rempart::router::openai {
namespace {

const AnswerHead kHead = {"id-1", 17, "m", false, false};

ChoiceDelta Delta(int32_t index, const char* text) {
  ChoiceDelta delta;
  delta.choice_index = index;
  delta.text = text;
  return delta;
}

TEST(ChatAnswer, StreamsRoleTextReasonAndMarker) {
  ChoiceDelta last = Delta(0, "b");
  last.finish = FinishReason::kLength;
  const std::string head =
      R"(data: {"id":"id-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[)";
  EXPECT_EQ(StreamStart(Route::kChat, kHead, 1),
            head + R"({"index":0,"delta":{"role":"assistant","content":""},)"
                   R"("logprobs":null,"finish_reason":null}]})"
                   "\n\n");
  EXPECT_EQ(StreamDelta(Route::kChat, kHead, last),
            head + R"({"index":0,"delta":{"content":"b"},"logprobs":null,"finish_reason":null}]})" +
                "\n\n" + head +
                R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]})" + "\n\n");
  EXPECT_EQ(StreamDelta(Route::kChat, kHead, Delta(0, "")), "");
  EXPECT_EQ(StreamEnd(Route::kChat, kHead, {}), "data: [DONE]\n\n");
}

TEST(ChatAnswer, UsageOnlyOnRequestAndLast) {
  AnswerHead head = kHead;
  head.include_usage = true;
  EXPECT_THAT(StreamDelta(Route::kChat, head, Delta(0, "a")), testing::HasSubstr("\"usage\":null"));
  EXPECT_EQ(StreamEnd(Route::kChat, head, {5, 2, 3}),
            R"(data: {"id":"id-1","object":"chat.completion.chunk","created":17,"model":"m",)"
            R"("choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,)"
            R"("prompt_tokens_details":{"cached_tokens":2}}})"
            "\n\ndata: [DONE]\n\n");
}

TEST(ChatAnswer, WholeWithLogprobs) {
  AnswerHead head = kHead;
  head.has_logprobs = true;
  ChoiceDelta choice = Delta(0, "\u00e9");
  choice.finish = FinishReason::kStop;
  choice.logprobs = {{"\xC3", -0.5f, {{"a", -1.5f, {}}}}, {"\xA9", -0.25f, {}}};
  EXPECT_EQ(
      WholeAnswer(Route::kChat, head, {choice}, {1, 0, 2}),
      R"({"id":"id-1","object":"chat.completion","created":17,"model":"m","choices":[{"index":0,)"
      R"("message":{"role":"assistant","content":"é","refusal":null},"logprobs":{"content":[)"
      R"({"token":"�","logprob":-0.5,"bytes":[195],"top_logprobs":[)"
      R"({"token":"a","logprob":-1.5,"bytes":[97]}]},)"
      R"({"token":"�","logprob":-0.25,"bytes":[169],"top_logprobs":[]}],"refusal":null},)"
      R"("finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,)"
      R"("total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}})");
}

TEST(CompletionAnswer, StreamsAndWhole) {
  EXPECT_EQ(StreamStart(Route::kCompletions, kHead, 2), "");
  EXPECT_EQ(StreamDelta(Route::kCompletions, kHead, Delta(1, "a")),
            R"(data: {"id":"id-1","object":"text_completion","created":17,"model":"m",)"
            R"("choices":[{"text":"a","index":1,"logprobs":null,"finish_reason":null}]})"
            "\n\n");
  AnswerHead head = kHead;
  head.has_logprobs = true;
  ChoiceDelta choice = Delta(0, "ab");
  choice.logprobs = {{"a", -1, {{"a", -1, {}}, {"b", -2, {}}}}, {"b", -2, {}}};
  EXPECT_THAT(WholeAnswer(Route::kCompletions, head, {choice}, {}),
              testing::HasSubstr(R"("logprobs":{"tokens":["a","b"],"token_logprobs":[-1,-2],)"
                                 R"("top_logprobs":[{"a":-1,"b":-2},{}],"text_offset":[0,1]})"));
}

TEST(Errors, InOpenAisShape) {
  ApiError error;
  error.message = "say \"x\"";
  error.code = "unknown_parameter";
  EXPECT_EQ(ErrorBody(error),
            R"({"error":{"message":"say \"x\"","type":"invalid_request_error","param":null,)"
            R"("code":"unknown_parameter"}})");
}

TEST(JsonText, EscapesAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(JsonString("a\n\x01\\\t"), "\"a\\n\\u0001\\\\\\t\"");
  EXPECT_EQ(JsonString("\xC0\x80"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");                  // overlong
  EXPECT_EQ(JsonString("\xED\xA0\x80"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");  // surrogate
  EXPECT_EQ(JsonString("\xF0\x9F\x98\x80"), "\"\xF0\x9F\x98\x80\"");
  EXPECT_EQ(JsonString("\xF0\x9F\x98"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");
}

}  // namespace
}  // namespace rempart::router::openai
