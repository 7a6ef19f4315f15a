// SPDX-License-Identifier: Apache-2.0
// A child process that ends and is started again.
#include "cli/child.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>

#include "common/clock.h"

namespace rempart::cli {
namespace {

class ChildTest : public testing::Test {
 protected:
  ~ChildTest() override { std::filesystem::remove(log_); }

  // Runs to its end.
  Child::Ending Run(Child& child) {
    EXPECT_TRUE(child.Start(SteadyNow()).ok());
    for (;;) {
      if (const auto ending = child.Poll(SteadyNow())) return *ending;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  const std::string log_ = testing::TempDir() + "/child_" + std::to_string(getpid()) + ".log";
};

TEST_F(ChildTest, ItsLastWordsAreThoseOfItsLastStart) {
  Child child("a child", {"/bin/sh", "-c", "echo $$ >&2; exit 3"}, log_);
  EXPECT_EQ(Run(child).exit_status, 3);
  const std::string first = child.LastWords();
  EXPECT_EQ(Run(child).words, "exit status 3");
  const std::string second = child.LastWords();
  EXPECT_NE(first, second);
  EXPECT_EQ(std::count(second.begin(), second.end(), '\n'), 1) << second;
}

TEST_F(ChildTest, OfManyWordsTheLastLinesAreTold) {
  Child child("a child", {"/bin/sh", "-c", "for i in $(seq 1000); do echo line $i; done"}, log_);
  EXPECT_EQ(Run(child).exit_status, 0);
  const std::string words = child.LastWords();
  EXPECT_LE(words.size(), 2000u);
  EXPECT_EQ(words.substr(0, 5), "line ");
  EXPECT_EQ(words.substr(words.size() - 10), "line 1000\n");
}

}  // namespace
}  // namespace rempart::cli
