// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/printable.h"
#include "common/status_macros.h"

namespace rempart {
namespace {

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  ASSIGN_OR_RETURN(int half, Half(value));
  ASSIGN_OR_RETURN(int quarter, Half(half));
  return quarter;
}

TEST(Printable, KeepsTextAndShowsWhatIsNone) {
  EXPECT_EQ(Printable("a key: \"Größe\", 日本, 🙂"), "a key: \"Größe\", 日本, 🙂");
  EXPECT_EQ(Printable("one\ntwo\t\x1b[2J\x7f"), "one\\ntwo\\t\\x1b[2J\\x7f");
  EXPECT_EQ(Printable(absl::string_view("\0x", 2)), "\\x00x");
  EXPECT_EQ(Printable("\xc2\x9b\xe2\x80\xa8"), "\\xc2\\x9b\\xe2\\x80\\xa8");  // CSI, a new line
  EXPECT_EQ(Printable("\xe0 \xc0\xaf \xed\xa0\x80 \xf4\x90\x80\x80 \xe2\x82"),
            "\\xe0 \\xc0\\xaf \\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80 \\xe2\\x82");
  EXPECT_EQ(Printable(""), "");
}

TEST(Printable, CutsWhatIsTooLongInTheMiddle) {
  const std::string text = "architecture \"" + std::string(100'000, 'x') + "\" is not served";
  const std::string cut = Printable(text, 90);
  EXPECT_LT(cut.size(), 120u);
  EXPECT_EQ(cut.substr(0, 15), "architecture \"x");
  EXPECT_NE(cut.find("x [99"), std::string::npos) << cut;
  EXPECT_NE(cut.find("x\" is not served"), std::string::npos) << cut;
  const std::string whole =
      Printable(std::string(50, 'x') + "日本日本日本日本日本日本日本日本", 62);
  EXPECT_EQ(Printable(whole), whole) << "no half characters";
  EXPECT_EQ(Printable("short", 5), "short");
}

TEST(Log, IsOneLineWhateverItQuotes) {
  testing::internal::CaptureStderr();
  LogError("worker", "metadata a\n2026 INFO worker: ready", {{"key", "\x1b]0;"}, {"b", "x\ny"}});
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  EXPECT_EQ(line.find('\x1b'), std::string::npos);
  EXPECT_NE(line.find("metadata a\\n2026 INFO"), std::string::npos) << line;
}

TEST(StatusMacros, AssignOrReturnPassesValueAndError) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status(), absl::InvalidArgumentError("odd"));
}

TEST(Check, FailureShowsBothValues) { EXPECT_DEATH(CHECK_EQ(1 + 1, 3), "2 vs 3"); }

TEST(Check, StreamsAreEvaluatedOnlyOnFailure) {
  int evaluations = 0;
  CHECK(true) << ++evaluations;
  EXPECT_EQ(evaluations, 0);
}

TEST(SteadyNow, GrowsAndStartsAtTheTimeOfDay) {
  const absl::Time first = SteadyNow();
  EXPECT_LT(absl::AbsDuration(absl::Now() - first), absl::Minutes(1));
  EXPECT_GE(SteadyNow(), first);
  const SystemClock clock;
  EXPECT_GE(clock.Now(), first);
  EXPECT_LT(absl::AbsDuration(clock.WallNow() - absl::Now()), absl::Minutes(1));
}

TEST(Mutex, WaitsUntilTheConditionHoldsOrTheTimeIsOver) {
  Mutex mu;
  bool done = false;
  mu.Lock();
  EXPECT_FALSE(mu.AwaitWithTimeout(absl::Condition(&done), absl::Milliseconds(1)));
  EXPECT_FALSE(mu.AwaitWithDeadline(absl::Condition(&done), absl::InfinitePast()));
  std::jthread other([&] {
    MutexLock lock(&mu);
    done = true;
  });
  EXPECT_TRUE(mu.AwaitWithDeadline(absl::Condition(&done), absl::InfiniteFuture()));
  mu.Unlock();
}

TEST(ManualClock, MovesOnlyWhenTold) {
  ManualClock clock;
  const absl::Time before = clock.Now();
  clock.Advance(absl::Seconds(3));
  EXPECT_EQ(clock.Now() - before, absl::Seconds(3));
}

}  // namespace
}  // namespace rempart
