// SPDX-License-Identifier: Apache-2.0
// A whole router process in this one, between client sockets and fake workers.
#include "router/http/router_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/health/health_server.h"
#include "router/config/router_config.h"
#include "tests/router/fake_worker.h"
#include "tests/router/http_client.h"

namespace rempart::router {
namespace {

using ::testing::HasSubstr;
// SHA-256 of "abc" (FIPS 180-2).
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

// Stands still until moved; any thread.
class StoppedClock : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixSeconds(seconds_); }
  void AdvanceSeconds(int64_t by) { seconds_ += by; }

 private:
  std::atomic<int64_t> seconds_ = 1'700'000'000;
};

class RouterProcessTest : public ::testing::Test {
 protected:
  RouterProcessTest() {
    topology_file_ = absl::StrCat(::testing::TempDir(), "/topology_", getpid(), "_",
                                  reinterpret_cast<uintptr_t>(this), ".json");
    settings_.http_address = "127.0.0.1:0";
    settings_.health_address = "127.0.0.1:0";
    settings_.topology_file = topology_file_;
    settings_.dev = true;
    settings_.router_id = "test";
    settings_.limits.drain_timeout = absl::Seconds(10);
    settings_.limits.max_body_bytes = 100'000;
  }
  ~RouterProcessTest() override { unlink(topology_file_.c_str()); }

  void WriteTopology(const std::vector<const FakeWorker*>& workers) {
    std::string groups;
    for (const FakeWorker* worker : workers) {
      absl::StrAppend(&groups, groups.empty() ? "" : ",", R"({"groupName":")", worker->group_name(),
                      R"(","address":")", worker->address(), R"(","ready":true})");
    }
    std::ofstream(topology_file_) << R"({"models":[{"modelName":"tiny","servedNames":["tiny"],)"
                                  << R"("contextLength":2048,"groups":[)" << groups << "]}]}";
  }
  void Start(const std::vector<const FakeWorker*>& workers) {
    WriteTopology(workers);
    auto process = RouterProcess::Start(settings_, clock_);
    ASSERT_TRUE(process.ok()) << process.status();
    process_ = *std::move(process);
    ASSERT_TRUE(Eventually([&] { return Ask(Get("/readyz")).status == 200; }));
    ASSERT_TRUE(Eventually([&] { return Level("rempart_router_groups_ready") == workers.size(); }));
  }
  std::string Metrics() {
    HttpClient client(process_->health_port());
    client.Send(Get("/metrics"));
    return client.Read().body;
  }
  size_t Level(const std::string& name) {
    const std::string text = Metrics();
    const size_t at = text.find(absl::StrCat("\n", name, " "));
    return at == std::string::npos ? 999 : std::stoul(text.substr(at + name.size() + 2));
  }
  Answer Ask(const std::string& request) {
    HttpClient client(process_->port());
    client.Send(request);
    return client.Read();
  }

  SystemClock system_clock_;
  StoppedClock stopped_clock_;
  const Clock* clock_ = &system_clock_;
  RouterSettings settings_;
  std::string topology_file_;
  std::unique_ptr<RouterProcess> process_;
};

TEST_F(RouterProcessTest, AnswersWholeAndStreamed) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient client(process_->port());  // one connection for all
  client.Send(Chat("count 3"));
  const Answer whole = client.Read();
  EXPECT_EQ(whole.status, 200);
  EXPECT_THAT(whole.body, HasSubstr(R"("content":"t0 t1 t2 ")"));
  EXPECT_THAT(whole.body, HasSubstr(R"("prompt_tokens":7,"completion_tokens":3)"));
  client.Send(Chat("count 3", R"(,"stream":true,"stream_options":{"include_usage":true})"));
  const Answer streamed = client.Read();
  EXPECT_THAT(streamed.head, HasSubstr("text/event-stream"));
  EXPECT_THAT(streamed.body, HasSubstr(R"("content":"t2 ")"));
  EXPECT_THAT(streamed.body, HasSubstr(R"("total_tokens":10)"));
  EXPECT_TRUE(absl::EndsWith(streamed.body, "data: [DONE]\n\n")) << streamed.body;
  client.Send(Post("/v1/completions", R"({"model":"tiny","prompt":["count 1","count 2"]})"));
  const Answer completions = client.Read();
  EXPECT_THAT(completions.body, HasSubstr(R"("text":"t0 ")"));
  EXPECT_THAT(completions.body, HasSubstr(R"("text":"t0 t1 ")"));
}

TEST_F(RouterProcessTest, ListsModels) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  EXPECT_THAT(Ask(Get("/v1/models")).body, HasSubstr(R"("id":"tiny")"));
  EXPECT_EQ(Ask(Get("/v1/models/tiny")).status, 200);
  EXPECT_EQ(Ask(Get("/v1/models/%74iny")).status, 200);
  EXPECT_EQ(Ask(Get("/v1/models/huge")).status, 404);
}

TEST_F(RouterProcessTest, RefusesWhatItCannotServe) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  const Answer unknown_model =
      Ask(Post("/v1/completions", R"({"model":"huge","prompt":"count 1"})"));
  EXPECT_EQ(unknown_model.status, 404);
  EXPECT_THAT(unknown_model.body, HasSubstr("model_not_found"));
  const Answer unknown_field = Ask(Chat("count 1", R"(,"temprature":1)"));
  EXPECT_EQ(unknown_field.status, 400);
  EXPECT_THAT(unknown_field.body, HasSubstr("temprature"));
  const Answer overflow = Ask(Chat("overflow"));
  EXPECT_EQ(overflow.status, 400);
  EXPECT_THAT(overflow.body, HasSubstr("9000 tokens do not fit the context of 2048"));
  EXPECT_THAT(overflow.body, HasSubstr(R"("param":"messages")"));
  EXPECT_EQ(Ask(Chat("\xff\xfe")).status, 400);
  EXPECT_EQ(Ask(Post("/v1/chat/completions", "{")).status, 400);
  EXPECT_EQ(Ask(Post("/v1/other", "{}")).status, 404);
  const Answer method = Ask(Get("/v1/chat/completions"));
  EXPECT_EQ(method.status, 405);
  EXPECT_THAT(method.head, HasSubstr("Allow: POST"));
  EXPECT_EQ(Ask(Post("/v1/completions", "{}", "Content-Encoding: gzip\r\n")).status, 415);
  EXPECT_EQ(worker.starts().size(), 1u);  // the overflow alone
}

TEST_F(RouterProcessTest, RefusesWhatIsNotHttp) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  EXPECT_EQ(Ask("NOT HTTP AT ALL\r\n\r\n").status, 400);
  EXPECT_EQ(Ask(Post("/v1/completions", std::string(100'001, ' '))).status, 413);
  EXPECT_EQ(Ask(Get("/v1/models", "X-Large: " + std::string(40'000, 'x') + "\r\n")).status, 431);
  EXPECT_EQ(Ask("POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n").status, 400);
}

TEST_F(RouterProcessTest, AnswersRequestsSentAheadInOrder) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient client(process_->port());
  client.Send(Chat("count 2") + Get("/v1/models") + Chat("count 1"));
  EXPECT_THAT(client.Read().body, HasSubstr("t0 t1 "));
  EXPECT_THAT(client.Read().body, HasSubstr(R"("object":"list")"));
  EXPECT_THAT(client.Read().body, HasSubstr(R"("content":"t0 ")"));
}

TEST_F(RouterProcessTest, AsksForTheBodyWhenTheClientWaits) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient client(process_->port());
  const std::string request =
      Post("/v1/completions", R"({"model":"tiny","prompt":"count 1"})", "Expect: 100-continue\r\n");
  const size_t head = request.find("\r\n\r\n") + 4;
  client.Send(request.substr(0, head));
  EXPECT_TRUE(client.WaitFor("100 Continue"));
  client.Send(request.substr(head));
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(RouterProcessTest, AClientThatLeavesCancelsItsRequest) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  for (const bool stream : {true, false}) {
    HttpClient client(process_->port());
    const size_t cancelled = worker.cancel_count();
    client.Send(Chat("hang", stream ? R"(,"stream":true)" : ""));
    if (stream) {
      EXPECT_TRUE(client.WaitFor("t0 "));
    }
    EXPECT_TRUE(Eventually([&] { return worker.starts().size() == cancelled + 1; }));
    client.Close();
    EXPECT_TRUE(Eventually([&] { return worker.cancel_count() == cancelled + 1; }));
  }
  EXPECT_TRUE(Eventually([&] { return Level("rempart_router_requests_running") == 0; }));
  EXPECT_EQ(Level("rempart_router_clients_left_total"), 2u);
}

TEST_F(RouterProcessTest, AClientThatDoesNotReadIsCutOff) {
  settings_.limits.max_unsent_bytes = 1 << 20;
  settings_.limits.write_timeout = absl::Seconds(20);
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient client(process_->port());
  client.Send(Chat("flood", R"(,"stream":true)"));
  EXPECT_TRUE(Eventually([&] { return worker.cancel_count() == 1; }));
}

TEST_F(RouterProcessTest, ALostGroupsRequestGoesOnElsewhere) {
  FakeWorker first("tiny-0"), second("tiny-1");
  second.Heal();
  Start({&first, &second});
  // Until the scripted death was met: the choice between idle groups is the policy's.
  for (int i = 0; i < 20 && first.starts().empty(); ++i) {
    const Answer answer = Ask(Chat("die 3", R"(,"stream":false,"temperature":0)"));
    EXPECT_EQ(answer.status, 200) << answer.body;
  }
  ASSERT_FALSE(first.starts().empty());
  ASSERT_FALSE(second.starts().empty());
  EXPECT_EQ(second.starts().back().resume_tokens_size(), 3);
  EXPECT_TRUE(Eventually([&] { return Level("rempart_router_request_moves") == 1; }));
}

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST_F(RouterProcessTest, ARequestIsReplayedTwiceAndThenEndsWithAFramedError) {
  FakeWorker workers[] = {FakeWorker("tiny-0"), FakeWorker("tiny-1"), FakeWorker("tiny-2"),
                          FakeWorker("tiny-3")};
  Start({&workers[0], &workers[1], &workers[2], &workers[3]});
  const Answer answer = Ask(Chat("lose 2", R"(,"stream":true,"seed":7)"));
  EXPECT_EQ(answer.status, 200);
  // What three groups wrote, once and in order.
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(Count(answer.body, absl::StrCat("\"t", i, " \"")), 1u) << answer.body;
  }
  EXPECT_EQ(Count(answer.body, "\"t6 \""), 0u);
  EXPECT_EQ(Count(answer.body, "data: {\"error\":{"), 1u) << answer.body;
  std::set<int> resumed;
  for (const FakeWorker& worker : workers) {
    ASSERT_LE(worker.starts().size(), 1u);
    for (const auto& start : worker.starts()) {
      resumed.insert(start.resume_tokens_size());
      EXPECT_EQ(start.sampling().seed(), 7u);
      for (int i = 0; i < start.resume_tokens_size(); ++i) EXPECT_EQ(start.resume_tokens(i), i);
    }
  }
  EXPECT_THAT(resumed, ::testing::ElementsAre(0, 2, 4));
  // An answer in one piece has no frame: it becomes an error as a whole.
  for (FakeWorker& worker : workers) worker.SayReady();
  EXPECT_TRUE(Eventually([&] { return Level("rempart_router_groups_ready") == 4; }));
  EXPECT_EQ(Ask(Chat("lose 2")).status, 500);
}

TEST_F(RouterProcessTest, NothingIsReplayedForAClientThatHasLeft) {
  FakeWorker first("tiny-0"), second("tiny-1");
  Start({&first, &second});
  HttpClient client(process_->port());
  client.Send(Chat("late", R"(,"stream":true)"));
  EXPECT_TRUE(client.WaitFor("t0 "));
  client.Close();
  // The loss comes after the cancellation.
  EXPECT_TRUE(Eventually([&] { return first.cancel_count() + second.cancel_count() == 1; }));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Ask(Chat("count 1")).status, 200);
  EXPECT_EQ(first.starts().size() + second.starts().size(), 5u);
  EXPECT_EQ(Level("rempart_router_request_moves"), 0u);
}

TEST_F(RouterProcessTest, AHeldReplayIsForgottenWhenItsClientLeaves) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient client(process_->port());
  client.Send(Chat("lose 1", R"(,"stream":true)"));
  EXPECT_TRUE(client.WaitFor("t0 "));
  EXPECT_TRUE(Eventually([&] { return Level("rempart_router_requests_held") == 1; }));
  client.Close();
  EXPECT_TRUE(Eventually([&] { return Level("rempart_router_requests_held") == 0; }));
  worker.SayReady();
  EXPECT_EQ(Ask(Chat("count 1")).status, 200);
  EXPECT_EQ(worker.starts().size(), 2u);
}

TEST_F(RouterProcessTest, TheLastReplayWaitsUntilTheGroupIsSteady) {
  clock_ = &stopped_clock_;
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient client(process_->port());
  client.Send(Chat("lose 1", R"(,"stream":true)"));
  const auto held = [&] { return Level("rempart_router_requests_held") == 1; };
  for (size_t losses = 1; losses <= 2; ++losses) {
    EXPECT_TRUE(Eventually([&] { return worker.starts().size() == losses && held(); }));
    worker.SayReady();
  }
  // Others are served meanwhile.
  EXPECT_EQ(Ask(Chat("count 1")).status, 200);
  EXPECT_TRUE(Eventually(held));
  stopped_clock_.AdvanceSeconds(4);
  EXPECT_EQ(Ask(Chat("count 1")).status, 200);
  EXPECT_TRUE(held());
  EXPECT_EQ(worker.starts().size(), 4u);
  worker.Heal();
  stopped_clock_.AdvanceSeconds(1);
  EXPECT_TRUE(Eventually([&] { return worker.starts().size() == 5u; }));
  EXPECT_EQ(worker.starts().back().resume_tokens_size(), 2);
  EXPECT_TRUE(client.WaitFor("data: [DONE]"));
}

TEST_F(RouterProcessTest, ADrainingGroupPassesItsRequestsOn) {
  FakeWorker first("tiny-0"), second("tiny-1");
  second.Heal();
  Start({&first, &second});
  for (int i = 0; i < 20 && first.starts().empty(); ++i) {
    EXPECT_EQ(Ask(Chat("drain")).status, 200);
  }
  EXPECT_EQ(first.starts().size(), 1u);
}

TEST_F(RouterProcessTest, HoldsRequestsUntilAGroupIsReady) {
  FakeWorker worker("tiny-0");
  Start({});
  HttpClient client(process_->port());
  client.Send(Chat("count 1"));
  EXPECT_TRUE(Eventually([&] { return Level("rempart_router_requests_held") == 1; }));
  WriteTopology({&worker});
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(RouterProcessTest, HoldsRequestsNoLongerThanAllowed) {
  settings_.limits.held_timeout = absl::Milliseconds(100);
  settings_.limits.max_held_requests = 1;
  Start({});
  HttpClient first(process_->port());
  first.Send(Chat("count 1"));
  const Answer late = first.Read();
  EXPECT_EQ(late.status, 503);
  EXPECT_THAT(late.body, HasSubstr("No worker of the model 'tiny' is ready"));
  EXPECT_THAT(late.head, HasSubstr("retry-after: 10"));
}

TEST_F(RouterProcessTest, NobodyIsServedWithoutAKey) {
  const std::string keys_file = topology_file_ + ".keys";
  std::ofstream(keys_file) << "team-a:" << kAbc << "\n";
  settings_.dev = false;
  settings_.api_keys_file = keys_file;
  FakeWorker worker("tiny-0");
  Start({&worker});
  const Answer none = Ask(Get("/v1/models"));
  EXPECT_EQ(none.status, 401);
  EXPECT_THAT(none.body, HasSubstr("invalid_api_key"));
  EXPECT_EQ(Ask(Get("/v1/models", "Authorization: Bearer abd\r\n")).status, 401);
  EXPECT_EQ(Ask(Get("/v1/models", "Authorization: Bearer abc\r\n")).status, 200);
  EXPECT_EQ(Ask(Post("/v1/completions", R"({"model":"tiny","prompt":"count 1"})",
                     "Authorization: Bearer abc\r\n"))
                .status,
            200);
  EXPECT_EQ(worker.starts().back().tenant(), "team-a");
  EXPECT_EQ(Ask(Get("/readyz")).status, 200);  // probes need none
  unlink(keys_file.c_str());
}

TEST_F(RouterProcessTest, StopLetsRunningRequestsFinish) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  const int port = process_->port();
  HttpClient busy(port), idle(port);
  idle.Send(Get("/v1/models"));
  EXPECT_EQ(idle.Read().status, 200);
  busy.Send(Chat("hang", R"(,"stream":true)"));
  EXPECT_TRUE(busy.WaitFor("t0 "));
  std::thread stop([&] { process_->Stop(); });
  EXPECT_TRUE(idle.WaitForEnd());
  EXPECT_TRUE(Eventually([&] { return !HttpClient(port).connected(); }));
  EXPECT_EQ(worker.cancel_count(), 0u);
  busy.Close();  // the last request ends, and so does Stop
  stop.join();
}

TEST_F(RouterProcessTest, StopStillServesThoseWhoHaveNotHeardOfIt) {
  settings_.limits.drain_delay = absl::Seconds(2);
  FakeWorker worker("tiny-0");
  Start({&worker});
  const int port = process_->port();
  HttpClient kept(port);
  kept.Send(Get("/v1/models"));
  EXPECT_EQ(kept.Read().status, 200);
  std::thread stop([&] { process_->Stop(); });
  ASSERT_TRUE(Eventually([&] { return Ask(Get("/readyz")).status == 503; }));
  const Answer late = Ask(Chat("count 2"));
  EXPECT_EQ(late.status, 200);
  EXPECT_THAT(late.head, HasSubstr("Connection: close"));
  kept.Send(Chat("count 2"));
  const Answer last = kept.Read();
  EXPECT_EQ(last.status, 200);
  EXPECT_THAT(last.head, HasSubstr("Connection: close"));
  stop.join();
  EXPECT_FALSE(HttpClient(port).connected());
}

TEST_F(RouterProcessTest, AnAnswerThatRunsWhenStopComesKeepsTheConnectionItPromisedToKeep) {
  settings_.limits.drain_delay = absl::Seconds(3);
  FakeWorker worker("tiny-0");
  Start({&worker});
  HttpClient kept(process_->port());
  kept.Send(Chat("wait", R"(,"stream":true)"));
  EXPECT_TRUE(kept.WaitFor("t0 "));
  std::thread stop([&] { process_->Stop(); });
  EXPECT_TRUE(Eventually([&] { return Ask(Get("/readyz")).status == 503; }));
  worker.Release();
  const Answer running = kept.Read();
  EXPECT_EQ(running.status, 200);
  EXPECT_THAT(running.head, HasSubstr("Connection: keep-alive"));
  kept.Send(Chat("count 2"));
  const Answer last = kept.Read();
  EXPECT_EQ(last.status, 200);
  EXPECT_THAT(last.head, HasSubstr("Connection: close"));
  EXPECT_TRUE(kept.WaitForEnd());
  stop.join();
}

TEST_F(RouterProcessTest, APortInUseIsSaidSo) {
  FakeWorker worker("tiny-0");
  Start({&worker});
  settings_.http_address = absl::StrCat("127.0.0.1:", process_->port());
  const auto second = RouterProcess::Start(settings_, clock_);
  ASSERT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr("httpAddress"));
}

TEST_F(RouterProcessTest, TwoShardsServeOnePort) {
  settings_.shards = 2;
  FakeWorker worker("tiny-0");
  WriteTopology({&worker});
  auto process = RouterProcess::Start(settings_, clock_);
  ASSERT_TRUE(process.ok()) << process.status();
  process_ = *std::move(process);
  // The sum over the shards.
  ASSERT_TRUE(Eventually([&] { return Level("rempart_router_groups_ready") == 2; }));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Ask(Chat("count 2")).status, 200);
}

TEST_F(RouterProcessTest, ProbesOfTheProcess) {
  Start({});
  const std::string address = absl::StrCat("127.0.0.1:", process_->health_port());
  EXPECT_TRUE(Probe(address, "ready", absl::Seconds(2)).ok());
  EXPECT_TRUE(Probe(address, "live", absl::Seconds(2)).ok());
  EXPECT_EQ(Probe(address, "asleep", absl::Seconds(2)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(Probe("127.0.0.1:1", "ready", absl::Seconds(2)).ok());
}

}  // namespace
}  // namespace rempart::router
