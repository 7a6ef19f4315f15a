// SPDX-License-Identifier: Apache-2.0
#include "router/supervise/supervisor.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "common/clock.h"
#include "common/log.h"

namespace rempart::router {
namespace {

constexpr size_t kCrashesAllowed = 5;
constexpr absl::Duration kCrashWindow = absl::Minutes(1);

sigset_t Watched() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, signal);
  return signals;
}

// In the child: only calls that are safe after fork.
[[noreturn]] void Become(char* const* arguments, const std::vector<int>& descriptors,
                         pid_t supervisor, const sigset_t& mask) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != supervisor) _exit(1);  // it died before the line above
  for (const int descriptor : descriptors) fcntl(descriptor, F_SETFD, 0);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  execv("/proc/self/exe", arguments);
  _exit(1);
}

// -1: no process is to be had; errno says why.
pid_t Spawn(std::vector<std::string> command, const std::vector<int>& descriptors,
            const sigset_t& mask) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t supervisor = getpid();
  const pid_t pid = fork();
  if (pid == 0) Become(arguments.data(), descriptors, supervisor, mask);
  return pid;
}

// Waits until the child is gone and returns what waitpid says of it; passes on what comes
// meanwhile.
int AwaitEnd(pid_t child, const sigset_t& watched, bool& stopping) {
  int status = 0;
  for (;;) {
    const pid_t ended = waitpid(child, &status, WNOHANG);
    if (ended == child) return status;
    if (ended < 0 && errno != EINTR) return 1 << 8;  // not ours: cannot be
    int signal = 0;
    sigwait(&watched, &signal);
    if (signal == SIGCHLD) continue;
    stopping = true;
    kill(child, signal);
  }
}

}  // namespace

bool RestartBudget::Spend(absl::Time now) {
  std::erase_if(crashes_, [now](absl::Time crash) { return crash + kCrashWindow <= now; });
  crashes_.push_back(now);
  return crashes_.size() <= kCrashesAllowed;
}

int Supervise(const std::function<std::vector<std::string>(int restarts)>& command,
              const std::vector<int>& descriptors) {
  const sigset_t watched = Watched();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &watched, &before);
  const SystemClock clock;
  RestartBudget budget;
  bool stopping = false;
  for (int restarts = 0;; ++restarts) {
    const pid_t child = Spawn(command(restarts), descriptors, before);
    if (child < 0) {
      LogError("router", "cannot start the process that serves",
               {{"reason", std::strerror(errno)}});
      return 1;
    }
    const int status = AwaitEnd(child, watched, stopping);
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    const int signal = WTERMSIG(status);
    if (stopping) {
      LogError("router", "the process that served ended before it had finished",
               {{"signal", signal}});
      return 1;
    }
    if (!budget.Spend(clock.Now())) {
      LogError("router", "the process that serves crashes again and again: giving up",
               {{"signal", signal}, {"restarts", restarts}});
      return 1;
    }
    LogError("router", "the process that served crashed: starting another", {{"signal", signal}});
  }
}

}  // namespace rempart::router
