// SPDX-License-Identifier: Apache-2.0
// The program and its driver, on a machine that shows them no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"

namespace rempart::benchmarks {
namespace {

using ::testing::HasSubstr;

struct Ran {
  int status = -1;
  std::string output;
};

Ran RunShell(const std::string& command) {
  Ran ran;
  FILE* pipe = popen(("CUDA_VISIBLE_DEVICES= " + command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return ran;
  char text[512];
  while (std::fgets(text, sizeof(text), pipe) != nullptr) ran.output += text;
  const int status = pclose(pipe);
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ran;
}

TEST(GpuBench, WithoutAGpuItSaysSo) {
  const Ran ran = RunShell(GPU_BENCH);
  EXPECT_EQ(ran.status, 6) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("gpu_bench: there is no GPU to run on: "));
  EXPECT_THAT(ran.output, HasSubstr("built with the cmake preset cuda"));
}

TEST(GpuBench, RefusesFlagsThatItDoesNotKnow) {
  for (const char* flags : {"--hurry", "--minutes", "--minutes 0", "--minutes soon"}) {
    const Ran ran = RunShell(absl::StrCat(GPU_BENCH, " ", flags));
    EXPECT_EQ(ran.status, 2) << flags;
    EXPECT_THAT(ran.output, HasSubstr("usage: gpu_bench")) << flags;
  }
  EXPECT_EQ(RunShell(absl::StrCat(GPU_BENCH, " --help")).status, 0);
}

TEST(Run, PassesOnWhatTheProgramSays) {
  const std::string out = absl::StrCat("/tmp/rempart_gpu_run_", getpid());
  const Ran ran =
      RunShell(absl::StrCat("GPU_BENCH=", GPU_BENCH, " benchmarks/gpu/run --out ", out));
  EXPECT_EQ(ran.status, 6) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("there is no GPU to run on"));
  std::filesystem::remove_all(out);
  const Ran missing = RunShell("GPU_BENCH=/nowhere/gpu_bench benchmarks/gpu/run");
  EXPECT_EQ(missing.status, 4);
  EXPECT_THAT(missing.output, HasSubstr("/nowhere/gpu_bench (GPU_BENCH) is no program"));
}

}  // namespace
}  // namespace rempart::benchmarks
