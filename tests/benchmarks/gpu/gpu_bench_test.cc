// SPDX-License-Identifier: Apache-2.0
// The program and its driver, on a machine that shows them no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/benchmarks/gpu/shell.h"

namespace rempart::benchmarks {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Ran RunHidden(const std::string& command) { return RunShell("CUDA_VISIBLE_DEVICES= " + command); }

TEST(GpuBench, WithoutAGpuItSaysSo) {
  const Ran ran = RunHidden(GPU_BENCH);
  EXPECT_EQ(ran.status, 6) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("gpu_bench: there is no GPU to run on: "));
  EXPECT_THAT(ran.output, HasSubstr("built with the cmake preset cuda"));
}

TEST(GpuBench, RefusesFlagsThatItDoesNotKnow) {
  for (const char* flags : {"--hurry", "--minutes", "--minutes 0", "--minutes soon"}) {
    const Ran ran = RunHidden(absl::StrCat(GPU_BENCH, " ", flags));
    EXPECT_EQ(ran.status, 2) << flags;
    EXPECT_THAT(ran.output, HasSubstr("usage: gpu_bench")) << flags;
  }
  EXPECT_EQ(RunHidden(absl::StrCat(GPU_BENCH, " --help")).status, 0);
}

TEST(Run, PassesOnWhatTheProgramSays) {
  const std::string out = absl::StrCat("/tmp/rempart_gpu_run_", getpid());
  const Ran ran =
      RunHidden(absl::StrCat("GPU_BENCH=", GPU_BENCH, " benchmarks/gpu/run --out ", out));
  EXPECT_EQ(ran.status, 6) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("there is no GPU to run on"));
  std::filesystem::remove_all(out);
  const Ran missing = RunHidden("GPU_BENCH=/nowhere/gpu_bench benchmarks/gpu/run");
  EXPECT_EQ(missing.status, 4);
  EXPECT_THAT(missing.output, HasSubstr("/nowhere/gpu_bench (GPU_BENCH) is no program"));
}

TEST(Run, SaysHowItIsUsedAndRunsNothing) {
  for (const char* flag : {"--help", "-h", "--minutes 3 --help"}) {
    const Ran ran =
        RunHidden(absl::StrCat("GPU_BENCH=/nowhere/gpu_bench benchmarks/gpu/run ", flag));
    EXPECT_EQ(ran.status, 0) << ran.output;
    EXPECT_THAT(ran.output, HasSubstr("\n  benchmarks/gpu/run [--minutes M]")) << flag;
    EXPECT_THAT(ran.output, HasSubstr("6 no GPU to run on.")) << flag;
    EXPECT_THAT(ran.output, Not(HasSubstr("set -"))) << flag;
    EXPECT_THAT(ran.output, Not(HasSubstr("filed as"))) << flag;
  }
}

TEST(Run, ACourseIsFiledWhenItIsWholeAndGood) {
  const std::string folder = absl::StrCat("/tmp/rempart_gpu_filed_", getpid());
  const std::string script =
      absl::StrCat("rm -rf ", folder, "; mkdir -p ", folder, "/benchmarks/gpu ", folder,
                   "/docs/benchmarks; ", "cp benchmarks/gpu/run ", folder,
                   "/benchmarks/gpu/; printf '#!/bin/sh\necho \"# The GPU, x\" "
                   ">$2/report.md\n' >",
                   folder, "/bench; chmod +x ", folder, "/bench; GPU_BENCH=", folder, "/bench ",
                   folder, "/benchmarks/gpu/run");
  EXPECT_THAT(RunShell(script).output, HasSubstr("filed as docs/benchmarks/gpu-20"));
  const Ran some = RunShell(script + " --only parity");
  EXPECT_EQ(some.status, 0) << some.output;
  EXPECT_THAT(some.output, Not(HasSubstr("filed as"))) << "a part is not the whole";
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace rempart::benchmarks
