// SPDX-License-Identifier: Apache-2.0
// Child processes: what they say, how they end, and that none is waited for too long.
#include "benchmarks/gpu/child.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdio>

#include "common/clock.h"

namespace rempart::benchmarks {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::unique_ptr<Child> Shell(const std::string& script,
                             const std::vector<std::string>& environment = {}) {
  auto child = Child::Start({"sh", "-c", script}, environment);
  EXPECT_TRUE(child.ok()) << child.status();
  return child.ok() ? *std::move(child) : nullptr;
}

absl::Time In(int seconds) { return SteadyNow() + absl::Seconds(seconds); }

TEST(Child, HearsLineByLineWhatItIsToldToSay) {
  const auto child = Shell("read a; echo got $a; printf 'x\\ny'");
  ASSERT_TRUE(child->Tell("one two").ok());
  EXPECT_EQ(*child->Hear(In(10)), "got one two");
  EXPECT_EQ(*child->Hear(In(10)), "x");
  EXPECT_EQ(child->Hear(In(10)).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(*child->Wait(In(10)), kEndedWell);
}

TEST(Child, TellsHowItEnded) {
  EXPECT_EQ(*Shell("exit 3")->Wait(In(10)), "exit status 3");
  const auto child = Shell("sleep 100");
  child->Signal(SIGKILL);
  EXPECT_EQ(*child->Wait(In(10)), "signal 9");
  EXPECT_EQ(*child->Wait(In(0)), "signal 9") << "once it is known";
}

TEST(Child, NothingIsWaitedForBeyondTheDeadline) {
  const auto child = Shell("sleep 100");
  const absl::Time soon = SteadyNow() + absl::Milliseconds(50);
  EXPECT_EQ(child->Hear(soon).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(SteadyNow(), soon);
  for (int i = 0; i < 20; ++i) {
    const absl::Time next = SteadyNow() + absl::Microseconds(1500 + 100 * i);
    EXPECT_EQ(child->Hear(next).status().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_GE(SteadyNow(), next) << "ended before its time";
  }
  EXPECT_EQ(child->Wait(soon).status().code(), absl::StatusCode::kDeadlineExceeded);
}

// As one is that waits in the driver of a broken GPU. Here a tracer holds it, which does not look
// how it has ended.
constexpr char kHeldChild[] = R"py(
import ctypes, os, time
libc = ctypes.CDLL(None)
PR_SET_PTRACER, PTRACE_SEIZE = 0x59616d61, 0x4206
libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
held = os.getpid()
if os.fork() == 0:
    print("refused" if libc.ptrace(PTRACE_SEIZE, held, 0, 0) else "held", held, os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
)py";

TEST(Child, OneThatDoesNotGoWhenItIsKilledIsLeft) {
  auto child = Child::Start({"python3", "-c", kHeldChild}, {});
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::StatusOr<std::string> said = (*child)->Hear(In(20));
  ASSERT_TRUE(said.ok()) << said.status();
  int held = 0, tracer = 0;
  ASSERT_EQ(std::sscanf(said->c_str(), "held %d %d", &held, &tracer), 2) << *said;
  const absl::Time killed = SteadyNow();
  child->reset();
  EXPECT_LT(SteadyNow() - killed, absl::Seconds(20));
  EXPECT_EQ(waitpid(held, nullptr, WNOHANG), 0) << "the test shows nothing";
  kill(tracer, SIGKILL);
  EXPECT_EQ(waitpid(held, nullptr, 0), held);
}

TEST(Child, OneThatHasEndedIsTold) {
  const auto child = Shell("exit 0");
  EXPECT_EQ(*child->Wait(In(10)), kEndedWell);
  EXPECT_FALSE(child->Tell("anything").ok());
}

TEST(Child, ItsEnvironmentHasWhatWasAsked) {
  setenv("REMPART_CHILD_A", "old", 1);
  setenv("REMPART_CHILD_B", "kept", 1);
  const auto child = Shell("echo $REMPART_CHILD_A $REMPART_CHILD_B", {"REMPART_CHILD_A=new"});
  EXPECT_EQ(*child->Hear(In(10)), "new kept");
}

TEST(Child, AProgramThatIsNotThereIsNamed) {
  const auto child = Child::Start({"/nowhere/program"}, {});
  EXPECT_THAT(std::string(child.status().message()), HasSubstr("/nowhere/program"));
}

TEST(TakeResult, TakesFiguresAndWhatIsWrong) {
  PartResult result;
  const auto child = Shell("printf 'figure\\ta\\t1.5\\tms\\nchatter\\nwrong\\tit is\\n'");
  TakeResult(*child, "it", In(10), result);
  ASSERT_EQ(result.figures.size(), 1u);
  EXPECT_EQ(result.figures[0].name, "a");
  EXPECT_EQ(result.figures[0].value, 1.5);
  EXPECT_THAT(result.wrong, ElementsAre("it is"));
}

TEST(TakeResult, AnEndThatIsNotCleanIsWrong) {
  PartResult result;
  TakeResult(*Shell("exit 5"), "it", In(10), result);
  TakeResult(*Shell("kill -SEGV $$"), "it", In(10), result);
  const absl::Time begin = SteadyNow();
  TakeResult(*Shell("sleep 100"), "it", begin + absl::Milliseconds(100), result);
  TakeResult(*Shell("exec >&-; sleep 100"), "it", SteadyNow() + absl::Milliseconds(100), result);
  EXPECT_LT(SteadyNow() - begin, absl::Seconds(20));
  EXPECT_THAT(result.figures, IsEmpty());
  EXPECT_THAT(result.wrong, ElementsAre("it: ended with exit status 5", "it: ended with signal 11",
                                        "it: it says nothing: it was ended at its deadline",
                                        "it: it does not end"));
}

}  // namespace
}  // namespace rempart::benchmarks
