// SPDX-License-Identifier: Apache-2.0
// Two ranks over emulated GPUs and a libnccl made for them, in processes of their own as on GPUs.
#include "benchmarks/gpu/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "tests/benchmarks/gpu/emulated.h"

namespace rempart::benchmarks {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

RankOptions Options() {
  RankOptions options;
  options.program = EMULATED_BENCH;
  options.nccl = SHARED_NCCL;
  options.step_timeout = std::chrono::milliseconds(3000);
  options.whole = absl::Seconds(200);
  options.one_shot_time = std::chrono::milliseconds(60'000);
  return options;
}

// A variable of the environment, of this process and its children.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { unsetenv(name_); }

 private:
  const char* const name_;
};

TEST(CheckRanks, TwoGiveTheTokensOfOneAndALostOneIsNoticed) {
  RankOptions options = Options();
  options.gpus = 2;
  options.gpus_reach_each_other = true;
  // An emulated kernel that waits ends before what is behind it begins to wait: twice the deadline.
  options.notice = absl::Milliseconds(4500);
  const auto result = CheckRanks(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  EXPECT_THAT(result->notes, IsEmpty());
  auto figures = ByName(*result);
  for (const std::string sums : {"", "_one_shot"}) {
    for (const char* group : {"threads", "processes", "two_gpus"}) {
      for (const char* decoder : {"llama", "mistral"}) {
        const std::string name = group + sums + "_" + decoder + "_tp2";
        EXPECT_GT(figures[name + "_same_tokens"], 80) << name;
        EXPECT_GT(figures[name + "_sampled_same_tokens"], 80) << name;
        EXPECT_GT(figures[name + "_worst_logits_error"], 0) << name;
      }
      // Their memory is the library's, and registered.
      EXPECT_EQ(figures[group + sums + "_symmetric_memory"], 1) << group << sums;
    }
    EXPECT_LT(figures["killed" + sums + "_noticed"], 2000);
    EXPECT_GE(figures["killed" + sums + "_ended"], figures["killed" + sums + "_noticed"]);
    EXPECT_GE(figures["stopped" + sums + "_noticed"], 2000)
        << "nothing tells but the deadline of the step";
    EXPECT_LT(figures["stopped" + sums + "_noticed"], sums.empty() ? 5000 : 7500);
  }
}

TEST(CheckRanks, ARankThatIsNoticedTooLateIsWrong) {
  RankOptions options = Options();
  // Nobody is so fast.
  options.notice = absl::ZeroDuration();
  options.only = {"killed", "stopped", "killed_one_shot", "stopped_one_shot"};
  options.step_timeout = std::chrono::milliseconds(500);
  const auto result = CheckRanks(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong,
              ElementsAre(HasSubstr("killed: noticed after "), HasSubstr("stopped: noticed after "),
                          HasSubstr("killed_one_shot: noticed after "),
                          HasSubstr("stopped_one_shot: noticed after ")));
}

// The decodes hold the kernels that read the other rank's memory.
TEST(CheckRanks, SumsInOneShotThatComeOutWrongAreFound) {
  const Variable bad("EMULATED_BAD_NORM", "1");
  RankOptions options = Options();
  options.only = {"processes", "threads_one_shot", "processes_one_shot"};
  const auto result = CheckRanks(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, Contains(HasSubstr("threads_one_shot: llama_tp2, token 0: logits")));
  EXPECT_THAT(result->wrong, Contains(HasSubstr("processes_one_shot: mistral_tp2, token 0: ")));
  for (const std::string& wrong : result->wrong) EXPECT_THAT(wrong, HasSubstr("_one_shot: "));
}

TEST(CheckRanks, NoSumsInOneShotAreWrongWhereRanksReachEachOther) {
  const Variable cut_off("EMULATED_CUT_OFF", "1");
  RankOptions options = Options();
  options.gpus = 2;
  options.only = {"threads_one_shot", "processes_one_shot", "two_gpus_one_shot", "killed_one_shot",
                  "stopped_one_shot"};
  for (const bool reach : {false, true}) {
    options.gpus_reach_each_other = reach;
    if (reach) options.only = {"two_gpus_one_shot"};
    const auto result = CheckRanks(options);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->wrong, Each(HasSubstr("_one_shot: no sums in one shot: ")));
    for (const char* const group : {"threads", "processes", "killed", "stopped"}) {
      if (reach) continue;
      EXPECT_THAT(result->wrong, Contains(StartsWith(group))) << "they share a GPU";
    }
    const auto of_two_gpus = HasSubstr("two_gpus_one_shot: no sums in one shot: the emulated GPU");
    EXPECT_THAT(reach ? result->wrong : result->notes, Contains(of_two_gpus));
    EXPECT_THAT(reach ? result->notes : result->wrong, testing::Not(Contains(of_two_gpus)));
  }
}

// Loading a kernel while another runs is a matter of one GPU in one process; that NCCL takes two
// ranks of one GPU, of that GPU. Ranks on GPUs of their own run as workers do.
TEST(CheckRanks, OnlyWhatSharesAGpuOrAProcessRunsOtherwiseThanAWorker) {
  const std::string log = testing::TempDir() + "/rempart_ranks_log";
  const Variable logged("EMULATED_LOG", log);
  const struct {
    const char* group;  // null: all-reduce
    int gpus;
    const char* environment;  // CUDA_MODULE_LOADING, NCCL_MULTI_RANK_GPU_ENABLE
    size_t processes;
  } rows[] = {{"threads_one_shot", 2, "EAGER 1 in-one-shot threads", 1},
              {"processes", 2, "unset 1 by-library compare", 2},
              {"killed", 2, "unset 1 by-library lose", 2},
              {"two_gpus", 2, "unset unset by-library compare", 2},
              {nullptr, 1, "EAGER 1 by-library all-reduce 0 0", 1},
              {nullptr, 2, "unset unset by-library all-reduce 0 1", 1}};
  for (const auto& row : rows) {
    std::remove(log.c_str());
    RankOptions options = Options();
    options.gpus = row.gpus;
    options.gpus_reach_each_other = true;
    options.one_shot_time = std::chrono::milliseconds(0);
    if (row.group != nullptr) options.only = {row.group};
    EXPECT_TRUE(
        (row.group != nullptr ? CheckRanks(options) : MeasureAllReduce(options, {8192})).ok());
    std::ifstream file(log);
    std::string looks_for_nccl;
    std::getline(file, looks_for_nccl);
    EXPECT_EQ(looks_for_nccl, "unset unset by-library nccl");
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    EXPECT_THAT(lines,
                testing::AllOf(testing::SizeIs(row.processes), Each(StartsWith(row.environment))));
  }
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
  EXPECT_EQ(figures["symmetric_memory"], 1);
  EXPECT_GT(figures["nccl_8_KiB"], 0);
  EXPECT_GT(figures["nccl_1_MiB"], figures["nccl_8_KiB"]);
  for (const char* const size : {"8_KiB", "64_KiB", "1_MiB"}) {
    EXPECT_GT(figures[std::string("nccl_norm_") + size], 0) << size;
    EXPECT_GT(figures[std::string("one_shot_norm_") + size], 0) << size;
  }
  EXPECT_EQ(figures.count("one_shot_max"), 1);
}

TEST(MeasureAllReduce, AMeasurementThatWasCutOffIsTold) {
  RankOptions options = Options();
  options.one_shot_time = std::chrono::milliseconds(0);
  const auto result = MeasureAllReduce(options, {8 << 10});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong,
              ElementsAre(HasSubstr("none of more than 8 KiB was measured in the time that there "
                                    "is for it, of 1024 KiB")));
}

TEST(MeasureAllReduce, NothingInOneShotIsWrongWhereRanksReachEachOther) {
  const Variable cut_off("EMULATED_CUT_OFF", "1");
  RankOptions options = Options();
  const auto absence =
      ElementsAre(HasSubstr("no sums in one shot: the emulated GPU reaches no other"));
  const auto on_one = MeasureAllReduce(options, {8 << 10});
  ASSERT_TRUE(on_one.ok()) << on_one.status();
  EXPECT_THAT(on_one->wrong, absence);
  EXPECT_THAT(on_one->notes, IsEmpty());
  EXPECT_EQ(ByName(*on_one).count("one_shot_max"), 0);
  options.gpus = 2;
  const auto apart = MeasureAllReduce(options, {8 << 10});
  ASSERT_TRUE(apart.ok()) << apart.status();
  EXPECT_THAT(apart->wrong, IsEmpty());
  EXPECT_THAT(apart->notes, absence);
  options.gpus_reach_each_other = true;
  EXPECT_THAT(MeasureAllReduce(options, {8 << 10})->wrong, absence);
}

TEST(RunRankChild, RefusesWhatNoParentSays) {
  const auto open = [](int) { return worker::DeviceUnavailable("none"); };
  testing::internal::CaptureStdout();
  EXPECT_EQ(RunRankChild(open, SmallDecoders(), {"a", "b"}), 1);
  EXPECT_EQ(
      RunRankChild(open, SmallDecoders(), {SHARED_NCCL, "1000", "1000", kByLibrary, "juggle"}), 1);
  EXPECT_EQ(RunRankChild(open, SmallDecoders(),
                         {SHARED_NCCL, "1000", "1000", kByLibrary, "threads", "0", "x"}),
            1);
  EXPECT_EQ(RunRankChild(open, SmallDecoders(),
                         {SHARED_NCCL, "1000", "1000", kByLibrary, "threads", "0", "0"}),
            1);
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            "wrong\t--rank-child is for this program alone\n"
            "wrong\t--rank-child does not know juggle\n"
            "wrong\tx is no number\n"
            "wrong\tnone\n");
}

}  // namespace
}  // namespace rempart::benchmarks
