// SPDX-License-Identifier: Apache-2.0
// Parts within a budget, kept and gone on with; and the report of what is kept.
#include "benchmarks/gpu/course.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace rempart::benchmarks {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CourseTest : public testing::Test {
 protected:
  CourseTest() {
    static int next = 0;
    folder_ = absl::StrCat("/tmp/rempart_gpu_bench_", getpid(), "_", ++next);
    for (const char* name : {"first", "second"}) {
      parts_.push_back({name, absl::StrCat("About the ", name, "."), absl::Seconds(60),
                        [this, name] { return RunOne(name); }});
    }
  }
  ~CourseTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<PartResult> RunOne(const std::string& name) {
    ran_.push_back(name);
    now_ += takes_;
    if (!error_.ok()) return error_;
    PartResult result;
    result.figures = {{"speed", 123.456, "tok/s"}};
    result.wrong = wrong_;
    return result;
  }
  absl::StatusOr<Ending> Run(const std::string& key = "H200 a1b2c3", int minutes = 9) {
    ran_.clear();
    said_.clear();
    return RunCourse(
        parts_, OutcomeStore(folder_, key), absl::Minutes(minutes), [this] { return now_; },
        [this](const std::string& line) { said_ += line + "\n"; });
  }

  std::string folder_;
  std::vector<Part> parts_;
  absl::Time now_ = absl::FromUnixSeconds(1'800'000'000);
  absl::Duration takes_ = absl::Seconds(30);
  absl::Status error_;
  std::vector<std::string> wrong_;
  std::vector<std::string> ran_;
  std::string said_;
};

TEST_F(CourseTest, RunsEachPartOnceAndKeepsIt) {
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre("first", "second"));
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre());
  EXPECT_THAT(said_, HasSubstr("second: kept from an earlier run"));
  EXPECT_EQ(*Run("H200 other"), Ending::kComplete);
  EXPECT_EQ(ran_.size(), 2u) << "of another version";
  OutcomeStore(folder_, "H200 other").Forget(parts_[0]);
  EXPECT_EQ(*Run("H200 other"), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre("first"));
}

TEST_F(CourseTest, WhatWasComputedWithAnotherFileIsNotKept) {
  parts_[0].input = "/a/model.gguf 100";
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre());
  parts_[0].input = "/b/model.gguf 100";
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre("first"));
}

TEST_F(CourseTest, BeginsNothingThatWouldNotEndInTimeAndGoesOnLater) {
  takes_ = absl::Seconds(90);
  EXPECT_EQ(*Run("key", 2), Ending::kOutOfTime);
  EXPECT_THAT(ran_, ElementsAre("first"));
  EXPECT_THAT(said_, HasSubstr("second: takes 1m, and less is left"));
  EXPECT_EQ(*Run("key", 2), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre("second"));
}

// "Run the same again" would never get to it.
TEST_F(CourseTest, WhatTakesLongerThanARunDoesNotRunAndTheOthersDo) {
  parts_[0].usual = absl::Minutes(3);
  EXPECT_EQ(*Run("key", 2), Ending::kBad);
  EXPECT_THAT(ran_, ElementsAre("second"));
  EXPECT_THAT(said_, HasSubstr("first: not run: takes 3m, more than --minutes has: give it more"));
  EXPECT_EQ(*Run("key", 2), Ending::kBad);
  EXPECT_EQ(*Run("key", 3), Ending::kComplete);
  EXPECT_THAT(ran_, ElementsAre("first"));
}

TEST_F(CourseTest, WhatIsWrongIsKeptAndStaysWrong) {
  wrong_ = {"matmul f16 3x5:\t140 %\nof what is allowed"};
  EXPECT_EQ(*Run(), Ending::kBad);
  EXPECT_EQ(ran_.size(), 2u) << "the others are worth knowing";
  EXPECT_THAT(said_, HasSubstr("first: WRONG in 30 s\n  matmul f16 3x5:"));
  EXPECT_EQ(*Run(), Ending::kBad);
  EXPECT_TRUE(ran_.empty());
  EXPECT_THAT(Report(parts_, OutcomeStore(folder_, "H200 a1b2c3"), "H200"),
              HasSubstr("**Wrong**, in 30 s."));
}

TEST_F(CourseTest, AnErrorOfTheDeviceEndsTheRunAndIsTriedAgain) {
  error_ = absl::InternalError("unspecified launch failure");
  EXPECT_EQ(*Run(), Ending::kBad);
  EXPECT_THAT(ran_, ElementsAre("first"));
  EXPECT_THAT(said_, HasSubstr("first: unspecified launch failure"));
  error_ = absl::OkStatus();
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_EQ(ran_.size(), 2u);
}

TEST_F(CourseTest, APartThatWasCutShortIsTriedAgainWhenThereIsTime) {
  error_ = CutShort("was ended");
  EXPECT_EQ(*Run(), Ending::kOutOfTime);
  EXPECT_THAT(ran_, ElementsAre("first"));
  error_ = absl::OkStatus();
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_EQ(ran_.size(), 2u);
}

TEST_F(CourseTest, APartThatLacksSomethingLetsTheOthersRunAndIsTriedAgain) {
  error_ = NotRun("no libnccl.so.2");
  EXPECT_EQ(*Run(), Ending::kBad) << "it has shown nothing";
  EXPECT_THAT(ran_, ElementsAre("first", "second"));
  EXPECT_THAT(said_, HasSubstr("first: not run: no libnccl.so.2\n"));
  EXPECT_THAT(Report(parts_, OutcomeStore(folder_, "H200 a1b2c3"), "H200"),
              HasSubstr("## first\n\nAbout the first.\n\n**Not run:** no libnccl.so.2\n"));
  error_ = absl::OkStatus();
  EXPECT_EQ(*Run(), Ending::kComplete);
  EXPECT_EQ(ran_.size(), 2u);
  // An error of the device with the same code is one.
  OutcomeStore(folder_, "H200 a1b2c3").Forget(parts_[0]);
  error_ = absl::FailedPreconditionError("this binary has no code for the GPU");
  EXPECT_EQ(*Run(), Ending::kBad);
  EXPECT_THAT(ran_, ElementsAre("first"));
}

TEST_F(CourseTest, AFileThatWasCutShortIsNotThere) {
  const OutcomeStore store(folder_, "key");
  Outcome outcome;
  outcome.result.figures = {{"a", 1.5, "ms"}};
  outcome.result.notes = {"none here"};
  outcome.result.wrong = {"b"};
  outcome.seconds = 2.5;
  ASSERT_TRUE(store.Save(parts_[0], outcome).ok());
  const auto kept = store.Load(parts_[0]);
  ASSERT_TRUE(kept.has_value());
  ASSERT_EQ(kept->result.figures.size(), 1u);
  EXPECT_EQ(kept->result.figures[0].name, "a");
  EXPECT_EQ(kept->result.figures[0].value, 1.5);
  EXPECT_EQ(kept->result.figures[0].unit, "ms");
  EXPECT_THAT(kept->result.notes, ElementsAre("none here"));
  EXPECT_THAT(kept->result.wrong, ElementsAre("b"));
  EXPECT_EQ(kept->seconds, 2.5);
  std::filesystem::resize_file(folder_ + "/first.tsv", 20);
  EXPECT_FALSE(store.Load(parts_[0]).has_value());
}

TEST_F(CourseTest, SaysWhereItCannotWrite) {
  std::ofstream(folder_) << "a file";
  const auto ending = Run();
  EXPECT_EQ(ending.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(ending.status().message()), HasSubstr("choose another folder: --out"));
}

TEST_F(CourseTest, TheReportTellsWhatHasNotRun) {
  takes_ = absl::Seconds(100);
  ASSERT_EQ(*Run("key", 2), Ending::kOutOfTime);
  EXPECT_EQ(Report(parts_, OutcomeStore(folder_, "key"), "NVIDIA H200, 2027-01-15"),
            "# NVIDIA H200, 2027-01-15\n"
            "\n## first\n\nAbout the first.\n\nGood, in 100 s.\n\n"
            "| figure | value | unit |\n|---|---|---|\n| speed | 123.5 | tok/s |\n"
            "\n## second\n\nAbout the second.\n\nHas not run.\n");
}

TEST_F(CourseTest, TheReportTellsWhyFiguresAreMissing) {
  const OutcomeStore store(folder_, "key");
  Outcome outcome;
  outcome.result.notes = {"the GPUs do not reach each other"};
  outcome.seconds = 1;
  ASSERT_TRUE(store.Save(parts_[0], outcome).ok());
  EXPECT_THAT(Report(parts_, store, "H200"),
              HasSubstr("|---|---|---|\n\n- the GPUs do not reach each other\n"));
}

}  // namespace
}  // namespace rempart::benchmarks
