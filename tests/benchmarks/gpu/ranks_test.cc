// SPDX-License-Identifier: Apache-2.0
// Two ranks over emulated GPUs and a libnccl made for them, in processes of their own as on GPUs.
#include "benchmarks/gpu/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/benchmarks/gpu/emulated.h"

namespace rempart::benchmarks {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

RankOptions Options() {
  RankOptions options;
  options.program = EMULATED_BENCH;
  options.nccl = SHARED_NCCL;
  options.step_timeout = std::chrono::milliseconds(3000);
  options.whole = absl::Seconds(200);
  return options;
}

TEST(CheckRanks, TwoGiveTheTokensOfOneAndALostOneIsNoticed) {
  RankOptions options = Options();
  options.gpus = 2;
  const auto result = CheckRanks(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  for (const char* group : {"threads", "processes", "two_gpus"}) {
    for (const char* decoder : {"llama", "mistral"}) {
      const std::string name = std::string(group) + "_" + decoder + "_tp2";
      EXPECT_GT(figures[name + "_same_tokens"], 80) << name;
      EXPECT_GT(figures[name + "_sampled_same_tokens"], 80) << name;
      EXPECT_GT(figures[name + "_worst_logits_error"], 0) << name;
    }
  }
  EXPECT_LT(figures["killed_noticed"], 2000);
  EXPECT_GE(figures["killed_ended"], figures["killed_noticed"]);
  EXPECT_GE(figures["stopped_noticed"], 2000) << "nothing tells but the deadline of the step";
  EXPECT_LT(figures["stopped_noticed"], 5000);
}

TEST(CheckRanks, ARankThatIsNoticedTooLateIsWrong) {
  RankOptions options = Options();
  // Nobody is so fast.
  options.notice = absl::ZeroDuration();
  options.step_timeout = std::chrono::milliseconds(500);
  const auto result = CheckRanks(options);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->wrong.size(), 2u);
  EXPECT_THAT(result->wrong[0], HasSubstr("killed: noticed after "));
  EXPECT_THAT(result->wrong[1], HasSubstr("stopped: noticed after "));
}

TEST(CheckRanks, WithoutNcclItHasNotRun) {
  RankOptions options = Options();
  options.nccl = "/nowhere/libnccl.so.2";
  const auto result = CheckRanks(options);
  EXPECT_THAT(std::string(result.status().message()),
              HasSubstr("NCCL cannot be loaded: /nowhere/libnccl.so.2"));
  EXPECT_EQ(MeasureAllReduce(options, {8192}).status(), result.status());
}

TEST(CheckRanks, AProgramThatIsNotThereIsNamed) {
  RankOptions options = Options();
  options.program = "/nowhere/gpu_bench";
  EXPECT_THAT(std::string(CheckRanks(options).status().message()), HasSubstr("/nowhere/gpu_bench"));
}

TEST(MeasureAllReduce, GivesTheTimeOfEachSize) {
  const auto result = MeasureAllReduce(Options(), {8 << 10, 1 << 20});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  auto figures = ByName(*result);
  EXPECT_EQ(figures["gpus"], 1);
  EXPECT_GT(figures["nccl_8_KiB"], 0);
  EXPECT_GT(figures["nccl_1_MiB"], figures["nccl_8_KiB"]);
  // The larger ones only as far as a second goes.
  EXPECT_GT(figures["nccl_norm_8_KiB"], 0);
  EXPECT_GT(figures["one_shot_norm_8_KiB"], 0);
  EXPECT_EQ(figures.count("one_shot_max"), 1);
}

TEST(MeasureAllReduce, SaysWhyNothingGoesInOneShot) {
  setenv("EMULATED_CUT_OFF", "1", 1);
  const auto result = MeasureAllReduce(Options(), {8 << 10});
  unsetenv("EMULATED_CUT_OFF");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->notes, testing::ElementsAre(HasSubstr("the emulated GPU reaches no other")));
  EXPECT_EQ(ByName(*result).count("one_shot_max"), 0);
}

TEST(RunRankChild, RefusesWhatNoParentSays) {
  const auto open = [](int) { return worker::DeviceUnavailable("none"); };
  testing::internal::CaptureStdout();
  EXPECT_EQ(RunRankChild(open, SmallDecoders(), {"a", "b"}), 1);
  EXPECT_EQ(RunRankChild(open, SmallDecoders(), {SHARED_NCCL, "1000", "1000", "juggle"}), 1);
  EXPECT_EQ(RunRankChild(open, SmallDecoders(), {SHARED_NCCL, "1000", "1000", "threads", "0", "x"}),
            1);
  EXPECT_EQ(RunRankChild(open, SmallDecoders(), {SHARED_NCCL, "1000", "1000", "threads", "0", "0"}),
            1);
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            "wrong\t--rank-child is for this program alone\n"
            "wrong\t--rank-child does not know juggle\n"
            "wrong\tx is no number\n"
            "wrong\tnone\n");
}

}  // namespace
}  // namespace rempart::benchmarks
