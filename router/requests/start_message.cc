// SPDX-License-Identifier: Apache-2.0
#include "router/requests/start_message.h"

namespace rempart::router {
namespace {

namespace v1 = worker::v1;

void WritePrompt(const ApiRequest& request, const Prompt& prompt, v1::Start& start) {
  switch (prompt.kind) {
    case Prompt::Kind::kText:
      start.set_text(prompt.text);
      return;
    case Prompt::Kind::kTokenIds:
      start.mutable_token_ids()->mutable_ids()->Add(prompt.token_ids.begin(),
                                                    prompt.token_ids.end());
      return;
    case Prompt::Kind::kChat:
      break;
  }
  v1::ChatPrompt* chat = start.mutable_chat();
  chat->set_add_generation_prompt(true);
  chat->set_template_variables_json(request.template_variables_json);
  for (const Message& from : prompt.messages) {
    v1::ChatMessage* message = chat->add_messages();
    message->set_role(from.role);
    message->set_content(from.content);
    message->set_name(from.name);
    message->set_tool_calls_json(from.tool_calls_json);
    message->set_tool_call_id(from.tool_call_id);
    message->set_content_is_null(from.content_is_null);
  }
}

void WriteSampling(const Sampling& from, v1::Sampling& sampling) {
  if (from.temperature) sampling.set_temperature(*from.temperature);
  if (from.top_p) sampling.set_top_p(*from.top_p);
  if (from.top_k) sampling.set_top_k(*from.top_k);
  if (from.min_p) sampling.set_min_p(*from.min_p);
  if (from.frequency_penalty) sampling.set_frequency_penalty(*from.frequency_penalty);
  if (from.presence_penalty) sampling.set_presence_penalty(*from.presence_penalty);
  if (from.repetition_penalty) sampling.set_repetition_penalty(*from.repetition_penalty);
  if (from.seed) sampling.set_seed(*from.seed);
  if (from.top_logprobs) sampling.set_top_logprobs(*from.top_logprobs);
  sampling.set_ignore_eos(from.ignore_eos);
  for (const auto& [token_id, bias] : from.logit_bias) {
    v1::LogitBias* entry = sampling.add_logit_bias();
    entry->set_token_id(token_id);
    entry->set_bias(bias);
  }
}

AnswerLogprob LogprobFrom(const v1::TokenLogprob& from) {
  AnswerLogprob logprob;
  logprob.token_bytes = from.token_bytes();
  logprob.logprob = from.logprob();
  for (const v1::TokenLogprob& top : from.top()) logprob.top.push_back(LogprobFrom(top));
  return logprob;
}

}  // namespace

v1::Start StartMessage(const ApiRequest& request, const Prompt& prompt, const std::string& tenant) {
  v1::Start start;
  start.set_tenant(tenant);
  start.set_served_name(request.served_name);
  start.set_max_tokens(request.max_tokens);
  start.set_n(request.n);
  start.set_echo(request.echo);
  start.set_cache_salt(request.cache_salt);
  for (const std::string& stop : request.stop) start.add_stop(stop);
  WritePrompt(request, prompt, start);
  WriteSampling(request.sampling, *start.mutable_sampling());
  return start;
}

ChoiceDelta ChoiceFrom(const v1::Delta& delta) {
  ChoiceDelta choice;
  choice.choice_index = delta.index();
  choice.text = delta.text();
  choice.reasoning = delta.reasoning();
  for (const v1::TokenLogprob& logprob : delta.logprobs()) {
    choice.logprobs.push_back(LogprobFrom(logprob));
  }
  if (!delta.has_finish()) return choice;
  switch (delta.finish().reason()) {
    case v1::Finish::LENGTH:
      choice.finish = FinishReason::kLength;
      break;
    case v1::Finish::TOOL_CALLS:
      choice.finish = FinishReason::kToolCalls;
      break;
    default:
      choice.finish = FinishReason::kStop;
  }
  return choice;
}

}  // namespace rempart::router
