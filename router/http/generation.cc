// SPDX-License-Identifier: Apache-2.0
#include "router/http/generation.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/requests/start_message.h"

namespace rempart::router {
namespace {

std::string DrawId(openai::Route route) {
  thread_local std::mt19937_64 random(std::random_device{}());
  return absl::StrCat(route == openai::Route::kChat ? "chatcmpl-" : "cmpl-",
                      absl::Hex(random(), absl::kZeroPad16), absl::Hex(random(), absl::kZeroPad8));
}

void AppendTo(openai::WholeChoice& choice, ChoiceDelta delta) {
  choice.text += delta.text;
  choice.reasoning += delta.reasoning;
  for (AnswerLogprob& logprob : delta.logprobs) choice.logprobs.push_back(std::move(logprob));
  if (delta.finish) choice.finish = delta.finish;
}

}  // namespace

Generation::Generation(const ShardContext& shard, Connection& connection, AccessRecord record,
                       openai::Route route, ApiRequest request)
    : shard_(shard),
      connection_(connection),
      record_(std::move(record)),
      route_(route),
      request_(std::move(request)) {
  head_.id = DrawId(route);
  head_.created_unix_seconds = absl::ToUnixSeconds(shard_.clock->WallNow());
  head_.served_name = request_.served_name;
  head_.include_usage = request_.include_usage;
  head_.has_logprobs = request_.sampling.top_logprobs.has_value();
  choices_.resize(request_.prompts.size() * static_cast<size_t>(request_.n));
  for (size_t i = 0; i < choices_.size(); ++i) choices_[i].choice_index = static_cast<int32_t>(i);
}

Generation::~Generation() { CancelAll(); }

void Generation::CancelAll() {
  for (const uint64_t ticket_id : std::exchange(ticket_ids_, {})) {
    shard_.dispatcher->Cancel(ticket_id);
  }
}

void Generation::Submit() {
  for (size_t i = 0; i < request_.prompts.size() && !ended_; ++i) {
    const int32_t prompt_index = static_cast<int32_t>(i);
    TicketEvents events;
    events.on_delta = [this, prompt_index](TicketDelta delta) {
      HandleDelta(prompt_index, std::move(delta));
    };
    events.on_error = [this](const ApiError& error) { HandleError(error); };
    const uint64_t ticket_id = shard_.dispatcher->Submit(
        StartMessage(request_, request_.prompts[i], record_.tenant), std::move(events));
    ticket_ids_.push_back(ticket_id);
  }
}

void Generation::HandleDelta(int32_t prompt_index, TicketDelta delta) {
  if (ended_) return;
  record_.usage.prompt_tokens += delta.prompt_tokens;
  record_.usage.cached_tokens += delta.cached_tokens;
  record_.usage.completion_tokens += delta.completion_tokens;
  if (!has_first_token_) {
    has_first_token_ = true;
    shard_.metrics->ObserveFirstToken(shard_.clock->Now() - record_.started);
  }
  delta.choice.choice_index += prompt_index * request_.n;
  const size_t index = static_cast<size_t>(delta.choice.choice_index);
  if (index >= choices_.size() || choices_[index].finish) return;  // not a worker of ours
  if (delta.choice.finish) ++choices_finished_;
  if (request_.stream) {
    if (!streaming_) BeginStream();
    connection_.SendEvent(openai::StreamDelta(route_, head_, delta.choice));
    choices_[index].finish = delta.choice.finish;
  } else {
    AppendTo(choices_[index], std::move(delta.choice));
  }
  if (choices_finished_ == choices_.size()) Complete();
}

void Generation::BeginStream() {
  streaming_ = true;
  record_.status = 200;
  HttpReply head = ReplyFor(record_, 200, "");
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers.emplace_back("Cache-Control", "no-cache");
  head.headers.emplace_back("X-Accel-Buffering", "no");
  connection_.BeginStream(head);
  connection_.SendEvent(openai::StreamStart(route_, head_, static_cast<int32_t>(choices_.size())));
}

void Generation::Complete() {
  ended_ = true;
  ticket_ids_.clear();
  const absl::Duration elapsed = shard_.clock->Now() - record_.started;
  shard_.metrics->ObserveRequest(elapsed);
  shard_.metrics->CountTokens(request_.served_name, record_.usage.prompt_tokens,
                              record_.usage.completion_tokens);
  if (streaming_) {
    connection_.SendEvent(openai::StreamEnd(route_, head_, record_.usage));
    return connection_.EndStream(Connection::StreamEnd::kKeep);
  }
  record_.status = 200;
  HttpReply reply =
      ReplyFor(record_, 200, openai::WholeAnswer(route_, head_, choices_, record_.usage));
  reply.headers.emplace_back("openai-processing-ms",
                             absl::StrCat(absl::ToInt64Milliseconds(elapsed)));
  connection_.Reply(reply);
}

void Generation::HandleError(const ApiError& error) {
  if (ended_) return;
  ended_ = true;
  CancelAll();
  if (streaming_) {
    record_.status = error.status;
    connection_.SendEvent(openai::ErrorEvent(error));
    return connection_.EndStream(Connection::StreamEnd::kClose);
  }
  record_.status = error.status;
  connection_.Reply(ErrorReply(record_, error));
}

void Generation::OnEnd(bool client_left, uint64_t bytes_sent) {
  ended_ = true;
  CancelAll();
  EndRecord(shard_, record_, client_left, bytes_sent);
}

}  // namespace rempart::router
