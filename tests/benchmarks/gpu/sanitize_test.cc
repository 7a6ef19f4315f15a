// SPDX-License-Identifier: Apache-2.0
// What is made of a sanitizer's words. The sanitizer is a script that says what NVIDIA's does.
#include "benchmarks/gpu/sanitize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class SanitizeTest : public testing::Test {
 protected:
  SanitizeTest() : path_(absl::StrCat("/tmp/rempart_sanitizer_", getpid())) {}
  ~SanitizeTest() override { std::filesystem::remove(path_); }

  // A sanitizer that runs this script; $2 is the tool, $5 and $6 the program and its flag.
  absl::StatusOr<PartResult> Check(const std::string& script) {
    std::ofstream(path_) << "#!/bin/sh\n" << script << "\n";
    chmod(path_.c_str(), 0755);
    SanitizeOptions options;
    options.program = "/nowhere/gpu_bench";
    options.sanitizers = {"/nowhere/compute-sanitizer", path_};
    options.limit = absl::Seconds(2);
    options.deadline = deadline_;
    return CheckSanitized(options);
  }

  const std::string path_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

constexpr char kGood[] =
    "echo '========= COMPUTE-SANITIZER'; echo chatter\n"
    "if [ $2 = memcheck ]; then echo '========= ERROR SUMMARY: 0 errors'\n"
    "else echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'; fi\n";

TEST_F(SanitizeTest, NoErrorsAreGood) {
  const auto result = Check(absl::StrCat("[ \"$1 $3 $4 $5 $6\" = '--tool --error-exitcode 87 ",
                                         "/nowhere/gpu_bench --sanitized' ] || exit 9\n", kGood));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  ASSERT_EQ(result->figures.size(), 2u);
  EXPECT_EQ(result->figures[0].name, "memcheck_errors");
  EXPECT_EQ(result->figures[0].value, 0);
  EXPECT_EQ(result->figures[1].name, "racecheck_errors");
}

TEST_F(SanitizeTest, ErrorsAreToldWithTheFirstOfThem) {
  const auto result = Check(absl::StrCat(
      "if [ $2 = memcheck ]; then\necho '========= COMPUTE-SANITIZER'\n"
      "echo '========= Invalid __global__ read of size 2 bytes'\n"
      "echo '=========     at MatvecKernel+0x1f0'\necho '========= ERROR SUMMARY: 12 errors'\n"
      "exit 87\nfi\n",
      kGood));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->figures[0].value, 12);
  EXPECT_THAT(result->wrong,
              ElementsAre("memcheck: ended with exit status 87, ERROR SUMMARY: 12 errors: Invalid "
                          "__global__ read of size 2 bytes; at MatvecKernel+0x1f0"));
}

TEST_F(SanitizeTest, SilenceIsNotGood) {
  EXPECT_THAT(Check("exit 0")->wrong,
              ElementsAre("memcheck: it gives no summary", "racecheck: it gives no summary"));
  EXPECT_THAT(Check("echo '========= ERROR SUMMARY: 1 error'")->wrong,
              ElementsAre("memcheck: ERROR SUMMARY: 1 error", "racecheck: ERROR SUMMARY: 1 error"));
  EXPECT_THAT(Check("[ $2 = racecheck ] || exec sleep 100; exit 1")->wrong,
              ElementsAre("memcheck: not done within 2s", "racecheck: ended with exit status 1"));
}

TEST_F(SanitizeTest, AllToolsEndByTheDeadline) {
  const absl::Time start = SteadyNow();
  deadline_ = start + absl::Seconds(1);
  const auto result = Check("exec sleep 100");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, ElementsAre(HasSubstr("memcheck: not done within "),
                                         HasSubstr("racecheck: not done within ")));
  EXPECT_LT(SteadyNow() - start, absl::Seconds(3)) << "each has two seconds";
}

TEST_F(SanitizeTest, WithoutTheSanitizerItHasNotRun) {
  SanitizeOptions options;
  options.sanitizers = {"/nowhere/compute-sanitizer"};
  EXPECT_THAT(std::string(CheckSanitized(options).status().message()),
              HasSubstr("there is no compute-sanitizer (/nowhere/compute-sanitizer)"));
}

TEST(RunSanitized, ComputesAndSaysWhyItCannot) {
  EXPECT_EQ(
      RunSanitized([](int) { return std::make_unique<worker::EmulatedDevice>(int64_t{1} << 30); }),
      0);
  EXPECT_EQ(RunSanitized([](int) { return worker::DeviceUnavailable("no driver"); }), 1);
}

}  // namespace
}  // namespace rempart::benchmarks
