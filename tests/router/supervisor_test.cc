// SPDX-License-Identifier: Apache-2.0
// The program rempart-router as it is run: a supervisor and the process that serves, which is
// killed.
#include "router/supervise/supervisor.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/router/fake_worker.h"
#include "tests/router/http_client.h"

namespace rempart::router {
namespace {

namespace fs = std::filesystem;

TEST(RestartBudgetTest, FiveCrashesAMinuteAndNoMore) {
  RestartBudget budget;
  const absl::Time start = absl::FromUnixSeconds(1'700'000'000);
  for (int second = 0; second < 5; ++second) {
    EXPECT_TRUE(budget.Spend(start + absl::Seconds(second)));
  }
  EXPECT_FALSE(budget.Spend(start + absl::Seconds(5)));
}

TEST(RestartBudgetTest, CrashesAreForgottenAfterAMinute) {
  RestartBudget budget;
  const absl::Time start = absl::FromUnixSeconds(1'700'000'000);
  for (int crash = 0; crash < 100; ++crash) {
    EXPECT_TRUE(budget.Spend(start + absl::Seconds(13) * crash));
  }
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

class SupervisorTest : public ::testing::Test {
 protected:
  SupervisorTest() {
    folder_ = fs::path(::testing::TempDir()) / absl::StrCat("supervisor_", getpid(), "_", port_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "topology.json")
        << R"({"models":[{"modelName":"tiny","servedNames":["tiny"],"contextLength":2048,)"
        << R"("groups":[{"groupName":"a","address":")" << worker_.address()
        << R"(","ready":true}]}]})";
    std::ofstream(folder_ / "router.json")
        << R"({"httpAddress":"127.0.0.1:)" << port_ << R"(","healthAddress":"127.0.0.1:)"
        << health_port_ << R"(","topologyFile":")" << (folder_ / "topology.json").string()
        << R"(","dev":true,"shards":2,"routerId":"test"})";
  }
  ~SupervisorTest() override {
    if (supervisor_ > 0) {
      kill(supervisor_, SIGKILL);
      waitpid(supervisor_, nullptr, 0);
    }
    fs::remove_all(folder_);
  }

  pid_t Run(const fs::path& config) {
    const pid_t pid = fork();
    if (pid == 0) {
      execl(REMPART_ROUTER, "rempart-router", "--config", config.c_str(), "--dev", nullptr);
      _exit(127);
    }
    return pid;
  }
  void Start() {
    supervisor_ = Run(folder_ / "router.json");
    ASSERT_TRUE(Eventually([&] { return AskStatus() == 200; }));
  }
  static std::string State(pid_t pid) {
    std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
    std::string skipped, state;
    stat >> skipped >> skipped >> state;
    return state;
  }
  // The process that serves; 0 while there is none.
  pid_t Serving() const {
    std::ifstream children(absl::StrCat("/proc/", supervisor_, "/task/", supervisor_, "/children"));
    pid_t pid = 0;
    return children >> pid && State(pid) != "Z" ? pid : 0;
  }
  int AskStatus() const {
    HttpClient client(port_);
    client.Send(Chat("count 2"));
    return client.Read().status;
  }
  std::string Metrics() const {
    HttpClient client(health_port_);
    client.Send(Get("/metrics"));
    return client.Read().body;
  }
  // How the supervisor ended.
  int Ending() {
    int status = 0;
    waitpid(supervisor_, &status, 0);
    supervisor_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  const FakeWorker worker_{"a"};
  const int port_ = FreePort();
  const int health_port_ = FreePort();
  fs::path folder_;
  pid_t supervisor_ = 0;
};

TEST_F(SupervisorTest, NoConnectionIsRefusedWhenTheServingProcessCrashes) {
  Start();
  for (int crash = 1; crash <= 3; ++crash) {
    const pid_t serving = Serving();
    ASSERT_GT(serving, 0);
    kill(serving, SIGKILL);
    ASSERT_TRUE(Eventually([&] { return Serving() != serving; }));
    EXPECT_EQ(AskStatus(), 200);
    EXPECT_TRUE(absl::StrContains(Metrics(), absl::StrCat("rempart_router_restarts ", crash, "\n")))
        << Metrics();
    EXPECT_NE(Serving(), serving);
  }
}

TEST_F(SupervisorTest, ARequestThatNobodyHadAcceptedIsAnsweredByTheNextProcess) {
  Start();
  const pid_t serving = Serving();
  kill(serving, SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return State(serving) == "T"; }));
  HttpClient client(port_);
  client.Send(Chat("count 3"));
  kill(serving, SIGKILL);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(SupervisorTest, CrashesAgainAndAgainEndIt) {
  Start();
  for (int crash = 1; crash <= 6; ++crash) {
    pid_t serving = 0;
    ASSERT_TRUE(Eventually([&] { return (serving = Serving()) > 0; }));
    kill(serving, SIGKILL);
    ASSERT_TRUE(Eventually([&] { return Serving() != serving; }));
  }
  EXPECT_EQ(Ending(), 1);
}

TEST_F(SupervisorTest, StopsInOrder) {
  Start();
  kill(supervisor_, SIGTERM);
  EXPECT_EQ(Ending(), 0);
  EXPECT_FALSE(HttpClient(port_).connected());
}

TEST_F(SupervisorTest, TheServingProcessDoesNotOutliveIt) {
  Start();
  const pid_t serving = Serving();
  kill(supervisor_, SIGKILL);
  EXPECT_EQ(Ending(), 1000 + SIGKILL);
  EXPECT_TRUE(Eventually([&] { return !HttpClient(port_).connected(); }));
  EXPECT_TRUE(Eventually([&] { return kill(serving, 0) != 0; }));
}

TEST_F(SupervisorTest, WhatCannotStartSaysSoByItsExitStatus) {
  supervisor_ = Run(folder_ / "missing.json");
  EXPECT_EQ(Ending(), 2);
  Start();
  const pid_t first = supervisor_;
  supervisor_ = Run(folder_ / "router.json");  // its port is taken
  EXPECT_EQ(Ending(), 5);
  supervisor_ = first;
}

}  // namespace
}  // namespace rempart::router
