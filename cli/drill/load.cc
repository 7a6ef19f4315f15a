// SPDX-License-Identifier: Apache-2.0
#include "cli/drill/load.h"

#include <simdjson.h>

#include <array>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "operator/kube/wait.h"

namespace rempart::cli {
namespace {

constexpr std::array<const char*, 6> kQuestions = {
    "What is the capital of France?", "Name three colours.",  "Why is the sky blue?",
    "Write a line about the sea.",    "What is two and two?", "Describe a cat in one sentence."};
constexpr int kMaxTokens = 48;
constexpr absl::Duration kRequestTimeout = absl::Seconds(300);

op::ClusterAccess AccessTo(const std::string& url, const std::string& api_key) {
  op::ClusterAccess access;
  access.server = url;
  access.token = api_key;
  return access;
}

std::string Body(const std::string& served, size_t question) {
  return absl::StrCat(R"({"model":")", served, R"(","stream":true,"temperature":0.7,"max_tokens":)",
                      kMaxTokens, R"(,"seed":)", 1000 + question,
                      R"(,"messages":[{"role":"user","content":")", kQuestions[question],
                      R"("}]})");
}

double SteadySeconds() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

std::string TextAt(const simdjson::dom::element& element, absl::string_view pointer) {
  std::string_view text;
  const auto found = element.at_pointer(std::string_view(pointer.data(), pointer.size()));
  return found.get(text) == simdjson::SUCCESS ? std::string(text) : std::string();
}

}  // namespace

absl::StatusOr<ChatLine> ParseChatLine(absl::string_view line) {
  ChatLine parsed;
  if (!absl::ConsumePrefix(&line, "data:")) return parsed;
  line = absl::StripAsciiWhitespace(line);
  if (line == "[DONE]") return parsed;
  simdjson::dom::parser parser;
  simdjson::dom::element event;
  if (parser.parse(line.data(), line.size()).get(event) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(absl::StrCat("the router sent what is no JSON: ", line));
  }
  parsed.error = TextAt(event, "/error/message");
  parsed.text = TextAt(event, "/choices/0/delta/content");
  parsed.finished = !TextAt(event, "/choices/0/finish_reason").empty();
  return parsed;
}

DrillLoad::DrillLoad(const std::string& url, const std::string& api_key, std::string served)
    : transport_(AccessTo(url, api_key)), served_(std::move(served)), began_(SteadySeconds()) {}

DrillLoad::~DrillLoad() { Stop(0); }

double DrillLoad::seconds() const { return SteadySeconds() - began_; }

DrillLoad::Asked DrillLoad::Ask(size_t question, std::stop_token stop) {
  Asked asked;
  bool finished = false;
  asked.answer.began = seconds();
  const auto on_line = [&](absl::string_view line) {
    const absl::StatusOr<ChatLine> parsed = ParseChatLine(line);
    if (!parsed.ok() || !parsed->error.empty()) {
      asked.answer.error = parsed.ok() ? parsed->error : std::string(parsed.status().message());
      return false;
    }
    if (!parsed->text.empty()) asked.answer.tokens_at.push_back(seconds());
    asked.text += parsed->text;
    finished |= parsed->finished;
    return true;
  };
  const auto response = transport_.Stream({"POST", "/v1/chat/completions", "application/json",
                                           Body(served_, question), kRequestTimeout},
                                          on_line, stop);
  asked.answer.ended = seconds();
  if (!asked.answer.error.empty()) return asked;
  if (!response.ok()) {
    asked.answer.error =
        std::string(absl::StripPrefix(response.status().message(), "API server: "));
  } else if (response->code != 200) {
    asked.answer.error = absl::StrCat("HTTP ", response->code, ": ", response->body);
  } else if (!finished) {
    asked.answer.error = "the answer broke off without a finish reason";
  }
  return asked;
}

absl::Status DrillLoad::Learn(std::stop_token stop) {
  for (size_t i = 0; i < kQuestions.size(); ++i) {
    const Asked asked = Ask(i, stop);
    if (stop.stop_requested()) return absl::CancelledError("interrupted");
    if (!asked.answer.error.empty()) {
      return absl::UnavailableError(absl::StrCat("a request to model ", served_,
                                                 " was not answered, so nothing has been "
                                                 "broken: ",
                                                 asked.answer.error));
    }
    expected_.push_back(asked.text);
  }
  return absl::OkStatus();
}

void DrillLoad::RunClient(size_t first, std::stop_token stop) {
  for (size_t i = first; !stop.stop_requested(); ++i) {
    const size_t question = i % kQuestions.size();
    Asked asked = Ask(question, cut_off_.get_token());
    asked.answer.differs = asked.answer.error.empty() && asked.text != expected_[question];
    const bool failed = !asked.answer.error.empty();
    {
      MutexLock lock(&mu_);
      answers_.push_back(std::move(asked.answer));
    }
    if (failed) op::PauseUnlessStopped(stop, absl::Milliseconds(200));
  }
  MutexLock lock(&mu_);
  --running_;
}

void DrillLoad::Start(int clients) {
  {
    MutexLock lock(&mu_);
    running_ += clients;
  }
  for (int i = 0; i < clients; ++i) {
    clients_.emplace_back(
        [this, i](std::stop_token stop) { RunClient(static_cast<size_t>(i), stop); });
  }
}

void DrillLoad::Stop(double wait_seconds) {
  for (std::jthread& client : clients_) client.request_stop();
  const double deadline = seconds() + wait_seconds;
  const auto is_over = [this] {
    MutexLock lock(&mu_);
    return running_ == 0;
  };
  while (!is_over() && seconds() < deadline) absl::SleepFor(absl::Milliseconds(50));
  cut_off_.request_stop();
  clients_.clear();
}

int DrillLoad::completed() const {
  MutexLock lock(&mu_);
  int completed = 0;
  for (const DrillAnswer& answer : answers_) completed += answer.error.empty() ? 1 : 0;
  return completed;
}

std::vector<DrillAnswer> DrillLoad::answers() const {
  MutexLock lock(&mu_);
  return answers_;
}

}  // namespace rempart::cli
