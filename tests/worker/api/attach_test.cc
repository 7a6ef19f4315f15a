// SPDX-License-Identifier: Apache-2.0
// The Attach stream end to end, with a real gRPC connection and the fake model.
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "tests/worker/api/attach_bench.h"
#include "tests/worker/api/fake_encoder.h"

namespace rempart::worker {
namespace {

constexpr EngineOptions kOptions = {
    .limits = {.max_step_tokens = 64, .max_sequences = 8, .block_size = 4},
    .context_length = 4096,
    .blocks_total = 4096};

class AttachTest : public testing::Test {
 protected:
  FakeModel model_{kOptions.blocks_total, kOptions.limits.block_size};
  FakeVocabulary vocabulary_;
  FakeEncoder encoder_;
  AttachBench bench_{kOptions, &model_, &vocabulary_, &encoder_};

  // True when the engine gets there in time.
  bool Idle() {
    for (int i = 0; i < 2000; ++i) {
      if (bench_.engine().load().running + bench_.engine().load().waiting == 0) return true;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return false;
  }
};

TEST_F(AttachTest, WelcomesAndAnswers) {
  RouterEnd router(bench_);
  EXPECT_EQ(router.welcome.group_name(), "ia/tiny-0");
  EXPECT_EQ(router.welcome.context_length(), 4096);
  EXPECT_EQ(router.welcome.vocabulary_size(), kFakeVocabulary);
  v1::Start start = TextStart(5, "hello", 12);
  start.mutable_sampling()->set_top_logprobs(2);
  const Received answer = router.Ask(start);
  EXPECT_EQ(answer.token_ids.size(), 12u);
  EXPECT_EQ(answer.finish.reason(), v1::Finish::LENGTH);
  EXPECT_EQ(answer.finish.completion_tokens(), 12);
  EXPECT_EQ(answer.prompt.prompt_tokens(), 5);
  ASSERT_EQ(answer.logprobs.size(), 12u);
  EXPECT_EQ(answer.logprobs[0].top_size(), 2);
  EXPECT_EQ(answer.logprobs[0].token_bytes(), std::string(1, char(answer.token_ids[0])));
}

TEST_F(AttachTest, CountsTheStartsThatItsLoadIncludes) {
  RouterEnd router(bench_);
  router.Ask(TextStart(1, "hello", 3));
  EXPECT_EQ(router.load.starts_seen(), 1u);
  v1::Start wrong = TextStart(2, "hello", 3);
  wrong.mutable_sampling()->set_top_p(7);
  EXPECT_EQ(router.Ask(wrong).error.field(), "sampling.top_p");
  EXPECT_EQ(router.load.starts_seen(), 2u);
}

TEST_F(AttachTest, TwoStreamsMayUseTheSameIds) {
  RouterEnd first(bench_), second(bench_);
  first.Start(TextStart(1, "one", 40));
  second.Start(TextStart(1, "two", 40));
  const Received a = first.Wait(1), b = second.Wait(1);
  EXPECT_EQ(a.token_ids.size(), 40u);
  EXPECT_EQ(b.token_ids.size(), 40u);
  EXPECT_NE(a.token_ids, b.token_ids);
  EXPECT_EQ(first.Ask(TextStart(2, "two", 40)).token_ids, b.token_ids);
}

TEST_F(AttachTest, CancelEndsTheRequestAndFreesItsBlocks) {
  RouterEnd router(bench_);
  router.Start(TextStart(1, "long", 4000));
  while (router.answers[std::make_pair(1, 0)].token_ids.empty()) ASSERT_TRUE(router.Read());
  router.Cancel(1);
  const Received answer = router.Wait(1);
  EXPECT_EQ(answer.finish.reason(), v1::Finish::CANCELLED);
  EXPECT_LT(answer.token_ids.size(), 4000u);
  ASSERT_TRUE(Idle());
  EXPECT_EQ(bench_.engine().load().blocks_used, 0);
}

TEST_F(AttachTest, ABrokenStreamCancelsItsRequestsAndNoOthers) {
  RouterEnd stays(bench_);
  {
    RouterEnd breaks(bench_);
    breaks.Start(TextStart(1, "long", 4000));
    while (breaks.answers[std::make_pair(1, 0)].token_ids.empty()) ASSERT_TRUE(breaks.Read());
    breaks.Break();
  }
  EXPECT_EQ(stays.Ask(TextStart(1, "short", 20)).token_ids.size(), 20u);
  ASSERT_TRUE(Idle());
  EXPECT_LT(bench_.engine().load().generated_tokens, 4000u);
  EXPECT_EQ(bench_.engine().load().blocks_used, 0);
}

TEST_F(AttachTest, OneErrorPerContinuation) {
  RouterEnd router(bench_);
  v1::Start start = TextStart(1, std::string(5000, 'x'), 1);
  start.set_n(2);
  const Received first = router.Ask(start);
  EXPECT_EQ(first.error.code(), v1::Failure::CONTEXT_OVERFLOW);
  EXPECT_TRUE(absl::StrContains(first.error.message(), "4096")) << first.error.message();
  EXPECT_TRUE(absl::StrContains(first.error.message(), "5000 in the prompt"));
  EXPECT_EQ(router.answers[std::make_pair(1, 1)].endings, 1);
}

TEST_F(AttachTest, AnswersPingsAndBeatsWhileIdle) {
  RouterEnd router(bench_);
  v1::ToWorker ping;
  ping.mutable_ping()->set_nonce(42);
  router.Write(ping);
  while (router.pong != 42) ASSERT_TRUE(router.Read());
  const uint64_t before = router.steps;
  while (router.steps == before) ASSERT_TRUE(router.Read());
  EXPECT_EQ(router.load.state(), v1::Load::READY);
  EXPECT_EQ(router.load.kv_blocks_total(), 4096);
}

TEST_F(AttachTest, RefusesWhatItDoesNotSpeak) {
  const auto ending = [&](const v1::ToWorker& message, bool hello) {
    RouterEnd router(bench_, hello);
    router.Write(message);
    while (router.Read()) {
    }
    return router.Finish();
  };
  v1::ToWorker newer;
  newer.mutable_hello()->set_protocol(2);
  EXPECT_EQ(ending(newer, false).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  v1::ToWorker start;
  *start.mutable_start() = TextStart(1, "x", 1);
  EXPECT_EQ(ending(start, false).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ending(newer, true).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(AttachTest, DrainingIsAnnouncedInBand) {
  RouterEnd router(bench_);
  router.Ask(TextStart(1, "x", 2));
  bench_.engine().Drain();
  while (router.load.state() != v1::Load::DRAINING) ASSERT_TRUE(router.Read());
  EXPECT_EQ(router.Ask(TextStart(2, "x", 2)).error.code(), v1::Failure::DRAINING);
}

TEST(Attach, IsUnavailableUntilTheModelIsThere) {
  SystemClock clock;
  AttachService service({.group_name = "g"}, &clock);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  auto server = builder.BuildAndStart();
  auto stub = v1::Worker::NewStub(server->InProcessChannel({}));
  grpc::ClientContext context;
  auto stream = stub->Attach(&context);
  v1::FromWorker frame;
  EXPECT_FALSE(stream->Read(&frame));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  server->Shutdown();
}

}  // namespace
}  // namespace rempart::worker
