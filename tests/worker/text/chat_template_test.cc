// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "worker/text/text.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kNow = 1'790'208'000;  // 2026-09-24 00:00:00 UTC

std::string Render(absl::string_view source, absl::string_view variables) {
  auto chat_template = ChatTemplate::Create(source);
  if (!chat_template.ok()) return std::string(chat_template.status().message());
  auto text = (*chat_template)->Render(variables, kNow);
  return text.ok() ? *text : "error: " + std::string(text.status().message());
}

TEST(ChatTemplate, RendersATurnAfterAnother) {
  constexpr char kChatMl[] =
      "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
      "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
  EXPECT_EQ(Render(kChatMl, R"({"messages": [{"role": "user", "content": "Salut <b>"}],
                               "add_generation_prompt": true})"),
            "<|im_start|>user\nSalut <b><|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, StripsBlocksAsHuggingFaceDoes) {
  EXPECT_EQ(Render("  {% if true %}\n  a\n  {% endif %}\nb", "{}"), "  a\nb");
}

TEST(ChatTemplate, KnowsPythonsStringMethods) {
  EXPECT_EQ(Render("{{ ' a,b '.strip().split(',')[1].upper() }}", "{}"), "B");
  EXPECT_EQ(Render("{{ x.items() | list }}", R"({"x": {"k": 1}})"), "[[\"k\", 1]]");
}

TEST(ChatTemplate, WritesJsonAsPythonDoes) {
  EXPECT_EQ(Render("{{ tools | tojson }}",
                   R"({"tools": [{"name": "f", "parameters": {"b": 1, "a": "é<"}}]})"),
            R"([{"name": "f", "parameters": {"b": 1, "a": "é<"}}])");
  EXPECT_EQ(Render("{{ {'a': 1} | tojson(indent=2) }}", "{}"), "{\n  \"a\": 1\n}");
}

TEST(ChatTemplate, TellsTheDate) {
  EXPECT_EQ(Render("{{ strftime_now('%d %b %Y, %A %H:%M') }}", "{}"),
            "24 Sep 2026, Thursday 00:00");
  EXPECT_THAT(Render("{{ strftime_now('%q') }}", "{}"), HasSubstr("strftime_now does not know %q"));
}

TEST(ChatTemplate, PassesOnTheTemplatesOwnComplaint) {
  EXPECT_EQ(Render("{{ raise_exception('roles must alternate') }}", "{}"),
            "error: roles must alternate");
}

TEST(ChatTemplate, SaysWhatIsWrongWithATemplate) {
  EXPECT_THAT(Render("{% for %}", "{}"), HasSubstr("the chat template does not parse"));
  EXPECT_THAT(Render("{{ messages[0].role.nothing() }}", R"({"messages": [{"role": "user"}]})"),
              HasSubstr("error: "));
  EXPECT_THAT(Render("x", "[1"), HasSubstr("template variables"));
}

TEST(ChatTemplate, EndsATemplateThatDoesNotEnd) {
  constexpr char kLoop[] =
      "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
      "{% endfor %}{% endfor %}{% endfor %}";
  EXPECT_EQ(Render(kLoop, "{}"), "error: the chat template does not come to an end");
}

TEST(ChatTemplate, EndsATemplateThatCallsItself) {
  EXPECT_THAT(Render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{}"),
              HasSubstr("error: "));
}

TEST(ChatTemplate, LimitsItsOutput) {
  constexpr char kFlood[] =
      "{% set x = 'a' * 100000 %}{% for i in range(9999) %}{{ x }}{% endfor %}";
  EXPECT_EQ(Render(kFlood, "{}"), "error: the chat template renders more than 67108864 bytes");
}

TEST(ChatTemplate, SurvivesHugeRepetitions) {
  EXPECT_THAT(Render("{% set x = 'a' * 9000000000000 %}{{ x }}", "{}"), HasSubstr("error: "));
  EXPECT_THAT(Render("{% set x = range(900000000000) | list %}{{ x }}", "{}"),
              HasSubstr("error: "));
}

}  // namespace
}  // namespace rempart::worker
