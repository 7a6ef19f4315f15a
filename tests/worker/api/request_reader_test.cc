// SPDX-License-Identifier: Apache-2.0
#include "worker/api/request_reader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/worker/api/fake_encoder.h"

namespace rempart::worker {
namespace {

constexpr absl::Time kNow = absl::UnixEpoch();

absl::variant<SequenceRequest, Failure> Read(const v1::Start& start) {
  return ReadStart(start, FakeEncoder(), FakeVocabulary(), kNow, 77);
}

v1::Start Valid() {
  v1::Start start;
  start.set_text("hi");
  return start;
}

TEST(ReadStart, FillsInWhatTheClientLeftOut) {
  const auto request = absl::get<SequenceRequest>(Read(Valid()));
  EXPECT_EQ(request.prompt_ids, (std::vector<int32_t>{'h', 'i'}));
  EXPECT_EQ(request.sampling.temperature, 1.0f);
  EXPECT_EQ(request.sampling.top_logprobs, -1);
  EXPECT_EQ(request.sampling.seed, 77u);
  EXPECT_TRUE(request.seed_was_drawn);
  EXPECT_EQ(request.n, 1);
  EXPECT_EQ(request.deadline, absl::InfiniteFuture());
}

TEST(ReadStart, TakesWhatTheClientSays) {
  v1::Start start = Valid();
  start.set_deadline_ms(1500);
  start.set_n(3);
  start.set_echo(true);
  start.set_tenant("team-a");
  start.set_cache_salt("s");
  start.add_stop("END");
  start.mutable_sampling()->set_seed(5);
  start.mutable_sampling()->set_top_k(-1);
  start.mutable_sampling()->set_temperature(0);
  const auto request = absl::get<SequenceRequest>(Read(start));
  EXPECT_EQ(request.deadline, kNow + absl::Milliseconds(1500));
  EXPECT_EQ(request.n, 3);
  EXPECT_EQ(request.client, "team-a");
  EXPECT_EQ(request.cache_salt, "s");
  EXPECT_EQ(request.echo_text, "hi");
  EXPECT_EQ(request.stop, std::vector<std::string>{"END"});
  EXPECT_EQ(request.sampling.seed, 5u);
  EXPECT_FALSE(request.seed_was_drawn);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.temperature, 0.0f);
}

class EncoderWithDefaults : public FakeEncoder {
 public:
  SamplingParams default_sampling() const override {
    SamplingParams sampling;
    sampling.temperature = 0.6f;
    sampling.top_k = 64;
    return sampling;
  }
};

TEST(ReadStart, WhatTheClientLeftOutIsTheModelsOwn) {
  v1::Start start = Valid();
  start.mutable_sampling()->set_top_k(0);
  const auto read = ReadStart(start, EncoderWithDefaults(), FakeVocabulary(), kNow, 77);
  const auto request = absl::get<SequenceRequest>(read);
  EXPECT_EQ(request.sampling.temperature, 0.6f);
  EXPECT_EQ(request.sampling.top_k, 0) << "it said so";
  EXPECT_EQ(request.sampling.seed, 77u);
}

TEST(ReadStart, NamesTheFieldAtFault) {
  struct Case {
    const char* field;
    std::function<void(v1::Start&)> break_it;
  };
  const Case cases[] = {
      {"prompt", [](v1::Start& s) { s.clear_prompt(); }},
      {"prompt", [](v1::Start& s) { s.mutable_token_ids()->add_ids(kFakeVocabulary); }},
      {"max_tokens", [](v1::Start& s) { s.set_max_tokens(-1); }},
      {"n", [](v1::Start& s) { s.set_n(129); }},
      {"stop", [](v1::Start& s) { s.add_stop(""); }},
      {"resume_tokens", [](v1::Start& s) { s.add_resume_tokens(-1); }},
      {"sampling.temperature", [](v1::Start& s) { s.mutable_sampling()->set_temperature(2.1f); }},
      {"sampling.temperature", [](v1::Start& s) { s.mutable_sampling()->set_temperature(NAN); }},
      {"sampling.top_p", [](v1::Start& s) { s.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_k", [](v1::Start& s) { s.mutable_sampling()->set_top_k(-2); }},
      {"sampling.min_p", [](v1::Start& s) { s.mutable_sampling()->set_min_p(-0.1f); }},
      {"sampling.frequency_penalty",
       [](v1::Start& s) { s.mutable_sampling()->set_frequency_penalty(3); }},
      {"sampling.repetition_penalty",
       [](v1::Start& s) { s.mutable_sampling()->set_repetition_penalty(0); }},
      {"sampling.top_logprobs", [](v1::Start& s) { s.mutable_sampling()->set_top_logprobs(21); }},
      {"sampling.logit_bias",
       [](v1::Start& s) { s.mutable_sampling()->add_logit_bias()->set_token_id(999); }},
      {"chat.messages", [](v1::Start& s) { s.mutable_chat(); }},
      {"chat.tools",
       [](v1::Start& s) {
         s.mutable_chat()->add_messages()->set_role("user");
         s.mutable_chat()->set_tools_json("[{}]");
       }},
      {"chat",
       [](v1::Start& s) {
         s.mutable_chat()->add_messages()->set_role("user");
         s.mutable_chat()->set_template_variables_json("refuse");
       }},
  };
  for (const Case& c : cases) {
    v1::Start start = Valid();
    c.break_it(start);
    const auto read = Read(start);
    const Failure* failure = absl::get_if<Failure>(&read);
    ASSERT_NE(failure, nullptr) << c.field;
    EXPECT_EQ(failure->code, FailureCode::kInvalidArgument) << c.field;
    EXPECT_EQ(failure->field, c.field) << failure->message;
    EXPECT_EQ(failure->message.rfind(c.field, 0), 0u) << failure->message;
  }
}

TEST(MessagesJson, EscapesAndKeepsWhatTemplatesNeed) {
  v1::ChatPrompt chat;
  v1::ChatMessage* user = chat.add_messages();
  user->set_role("user");
  user->set_content("say \"hi\"\n\x01 \xc3\xa9\\");
  v1::ChatMessage* assistant = chat.add_messages();
  assistant->set_role("assistant");
  assistant->set_content_is_null(true);
  assistant->set_tool_calls_json("[{\"id\":\"a\"}]");
  EXPECT_EQ(MessagesJson(chat),
            "[{\"role\":\"user\",\"content\":\"say \\\"hi\\\"\\n\\u0001 \xc3\xa9\\\\\"},"
            "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"a\"}]}]");
}

}  // namespace
}  // namespace rempart::worker
