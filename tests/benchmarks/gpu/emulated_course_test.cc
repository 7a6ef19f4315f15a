// SPDX-License-Identifier: Apache-2.0
// The whole course over emulated GPUs, as a program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/benchmarks/gpu/shell.h"
#include "tests/worker/model/tiny_gguf.h"

namespace rempart::benchmarks {
namespace {

using ::testing::HasSubstr;

class Emulated : public testing::Test {
 protected:
  Emulated() : out_(absl::StrCat("/tmp/rempart_gpu_course_", getpid())) {}
  ~Emulated() override { std::filesystem::remove_all(out_); }

  Ran Run(const std::string& flags) {
    return RunShell(absl::StrCat(EMULATED_BENCH, " --out ", out_, " ", flags));
  }
  std::string Report() const {
    std::ifstream file(out_ + "/report.md");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::string out_;
};

TEST_F(Emulated, TheWholeCourseIsGood) {
  std::filesystem::create_directories(out_);
  const std::string model = out_ + "/tiny.gguf";
  std::ofstream(model, std::ios::binary) << worker::TinyGguf()[0];
  const std::string parts =
      "parity,parity_exact,parity_tiny,ranks,allreduce,products,speed_bf16,speed_fp8,load_bf16,"
      "load_fp8,"
      "profile_bf16,profile_fp8";
  const std::string flags = absl::StrCat("--nccl ", SHARED_NCCL, " --model ", model,
                                         " --minutes 60 --label test --only ", parts);
  const Ran ran = Run(flags);
  EXPECT_EQ(ran.status, 0) << ran.output;
  const std::string report = Report();
  EXPECT_THAT(report, HasSubstr("# Emulated GPU, 20"));
  EXPECT_THAT(report, HasSubstr("| up_16_fp8_blocks | "));
  EXPECT_THAT(report, HasSubstr("| decode_3_tokens_per_s | "));
  EXPECT_THAT(report, HasSubstr("| nccl_8_KiB | "));
  EXPECT_THAT(report, HasSubstr("| killed_noticed | "));
  EXPECT_THAT(report, HasSubstr("| processes_one_shot_llama_tp2_same_tokens | "));
  EXPECT_THAT(report, HasSubstr("| load_8_8_of_tensorrt_llm | "));
  EXPECT_THAT(report, HasSubstr("| batch 1 product 512x256 by matvec | "));
  EXPECT_THAT(report, HasSubstr("| tiny_same_tokens | "));
  EXPECT_THAT(report, HasSubstr("Has not run.")) << "conformance was not asked for";
  EXPECT_THAT(Run(flags).output, HasSubstr("ranks: kept from an earlier run"));
}

TEST_F(Emulated, WhatCouldNotRunIsNotGood) {
  const Ran ran = Run("--nccl /nowhere/libnccl.so.2 --only allreduce");
  EXPECT_EQ(ran.status, 1) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("allreduce: not run: NCCL cannot be loaded: /nowhere/"));
  EXPECT_THAT(Report(), HasSubstr("**Not run:** NCCL cannot be loaded: /nowhere/"));
}

// A GPU's errors stay with the process that met them, so each part has one of its own.
TEST_F(Emulated, WhatBreaksInOnePartLeavesTheOthers) {
  for (const auto& [trouble, words] : {std::pair("crash", "its process: ended with signal 6"),
                                       std::pair("error", "unspecified launch failure")}) {
    const Ran ran = RunShell(absl::StrCat("EMULATED_TROUBLE=parity:", trouble, " ", EMULATED_BENCH,
                                          " --fresh --out ", out_, " --only parity,speed_bf16"));
    EXPECT_EQ(ran.status, 1) << ran.output;
    EXPECT_THAT(ran.output, HasSubstr("parity: WRONG")) << trouble;
    EXPECT_THAT(ran.output, HasSubstr(words));
    EXPECT_THAT(ran.output, HasSubstr("speed_bf16: done")) << trouble;
  }
}

// At a twentieth of its pace: parity takes 3 s as a rule, is ended after 9, and a second after the
// run's time.
TEST_F(Emulated, APartThatHangsIsEnded) {
  const std::string hang = absl::StrCat("EMULATED_TROUBLE=parity:hang EMULATED_PACE=0.05 ",
                                        EMULATED_BENCH, " --out ", out_, " --only parity ");
  const Ran cut_short = RunShell(hang + "--minutes 0.1");
  EXPECT_EQ(cut_short.status, 3) << cut_short.output;
  EXPECT_THAT(cut_short.output, HasSubstr("parity: was ended with the time of --minutes"));
  EXPECT_THAT(Report(), HasSubstr("Has not run."));
  const Ran hung = RunShell(hang);
  EXPECT_EQ(hung.status, 1) << hung.output;
  EXPECT_THAT(hung.output, HasSubstr("it says nothing: it was ended at its deadline"));
  EXPECT_THAT(RunShell(hang).output, HasSubstr("parity: kept from an earlier run"))
      << "the others' turn";
}

// Those whose work is in processes that the program itself starts end with its time, too. The pace
// is such that they begin, and that their own time is over later.
TEST_F(Emulated, APartOfOtherProcessesEndsWithTheTime) {
  std::filesystem::create_directories(out_);
  const std::string hangs = out_ + "/hangs";
  std::ofstream(hangs) << "#!/bin/sh\nexec sleep 1000\n";
  std::filesystem::permissions(hangs, std::filesystem::perms::owner_all);
  std::filesystem::create_symlink("hangs", out_ + "/compute-sanitizer");
  for (const auto& [part, pace] :
       {std::pair("ranks", 0.02), std::pair("allreduce", 0.04), std::pair("load_fp8_vllm", 0.009),
        std::pair("sanitize", 0.014)}) {
    const absl::Time start = absl::Now();
    const Ran ran = RunShell(
        absl::StrCat("PATH=", out_, ":$PATH EMULATED_TROUBLE=ranks:hang EMULATED_PACE=", pace, " ",
                     EMULATED_BENCH, " --out ", out_, " --nccl ", SHARED_NCCL, " --vllm ", hangs,
                     " --minutes 0.05 --only ", part));
    EXPECT_EQ(ran.status, 3) << ran.output;
    EXPECT_THAT(ran.output,
                HasSubstr(absl::StrCat(part, ": was ended with the time of --minutes")));
    EXPECT_GE(absl::Now() - start, absl::Seconds(3)) << part;
    EXPECT_LT(absl::Now() - start, absl::Seconds(20)) << part;
  }
}

// A mended program is not called good for what the one before it has shown.
TEST_F(Emulated, WhatAnotherProgramHasShownIsNotKept) {
  const std::string flags = " --label same --only products --out " + out_;
  EXPECT_THAT(RunShell(EMULATED_BENCH + flags).output, HasSubstr("products: done"));
  EXPECT_THAT(RunShell(EMULATED_BENCH + flags).output, HasSubstr("products: kept"));
  const std::string other = out_ + "/other_bench";
  std::filesystem::copy_file(EMULATED_BENCH, other);
  std::ofstream(other, std::ios::app) << "mended";
  EXPECT_THAT(RunShell(other + flags).output, HasSubstr("products: done"));
}

TEST_F(Emulated, AnotherFileOfTheSameNameIsComputed) {
  const std::string flags = " --only parity_tiny --model " + out_ + "/";
  for (const char* const folder : {"a", "b"}) {
    std::filesystem::create_directories(out_ + "/" + folder);
    std::ofstream(out_ + "/" + folder + "/tiny.gguf", std::ios::binary) << worker::TinyGguf()[0];
    EXPECT_THAT(Run(flags + folder + "/tiny.gguf").output, HasSubstr("parity_tiny: done"));
    EXPECT_THAT(Run(flags + folder + "/tiny.gguf").output, HasSubstr("parity_tiny: kept"));
  }
}

TEST_F(Emulated, TwoPartsOfOneNameAreRefused) {
  for (const std::string models :
       {"--model a/tiny.gguf --model b/tiny.gguf", "--model exact.gguf"}) {
    const Ran ran = Run(models);
    EXPECT_EQ(ran.status, 2) << ran.output;
    EXPECT_THAT(ran.output, HasSubstr("--model: two parts would be parity_"));
    EXPECT_THAT(ran.output, HasSubstr("give the file another name"));
  }
}

TEST_F(Emulated, PartsThatAreNoneAreNamed) {
  const Ran ran = Run("--only parity,juggling");
  EXPECT_EQ(ran.status, 2);
  EXPECT_THAT(ran.output, HasSubstr("--only juggling is no part; there are conformance, parity, "));
}

}  // namespace
}  // namespace rempart::benchmarks
