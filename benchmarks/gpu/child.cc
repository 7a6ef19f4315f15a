// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/child.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"

extern char** environ;

namespace rempart::benchmarks {
namespace {

// Between two looks whether a child has ended.
constexpr absl::Duration kLook = absl::Milliseconds(5);
// For a process that was killed to be gone.
constexpr absl::Duration kGone = absl::Seconds(5);
constexpr size_t kMostLine = size_t{1} << 20;

std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// This process's, with `more` in front: of two entries of a name the first counts.
std::vector<std::string> EnvironmentWith(const std::vector<std::string>& more) {
  std::vector<std::string> entries = more;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('=') + 1);
    const bool is_replaced = std::any_of(more.begin(), more.end(), [&](const std::string& own) {
      return own.compare(0, name.size(), name) == 0;
    });
    if (!is_replaced) entries.push_back(text);
  }
  return entries;
}

// Of every thread. None where the kernel does not say.
std::vector<pid_t> OwnChildren() {
  std::vector<pid_t> pids;
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::ifstream children(task.path() / "children");
    for (pid_t pid = 0; children >> pid;) pids.push_back(pid);
  }
  return pids;
}

// Kills and waits. False: it does not go, as one that a broken GPU's driver holds, and is left to
// the system.
bool End(pid_t pid) {
  kill(pid, SIGKILL);
  const absl::Time deadline = SteadyNow() + kGone;
  for (;;) {
    const pid_t ended = waitpid(pid, nullptr, WNOHANG);
    if (ended == pid || (ended == -1 && errno != EINTR)) return true;
    if (SteadyNow() >= deadline) break;
    absl::SleepFor(kLook);
  }
  std::cerr << "process " << pid << " was killed and does not end: something holds it\n";
  return false;
}

std::string HowItEnded(int status) {
  if (WIFEXITED(status)) return absl::StrCat("exit status ", WEXITSTATUS(status));
  return absl::StrCat("signal ", WTERMSIG(status));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Child>> Child::Start(const std::vector<std::string>& words,
                                                    const std::vector<std::string>& environment) {
  std::signal(SIGPIPE, SIG_IGN);  // a child that has ended is an error of Tell
  int to[2], from[2];
  if (pipe2(to, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "a pipe");
  if (pipe2(from, O_CLOEXEC) != 0) {
    const absl::Status status = absl::ErrnoToStatus(errno, "a pipe");
    close(to[0]);
    close(to[1]);
    return status;
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, to[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, from[1], STDOUT_FILENO);
  const std::vector<std::string> entries = EnvironmentWith(environment);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, words[0].c_str(), &actions, nullptr, Pointers(words).data(),
                                 Pointers(entries).data());
  posix_spawn_file_actions_destroy(&actions);
  close(to[0]);
  close(from[1]);
  if (error == 0) return std::unique_ptr<Child>(new Child(pid, to[1], from[0]));
  close(to[1]);
  close(from[0]);
  return absl::ErrnoToStatus(error, absl::StrCat("starting ", words[0]));
}

Child::~Child() {
  close(to_);
  close(from_);
  if (pid_ != -1) End(pid_);
}

absl::Status Child::Tell(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(to_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "telling a child");
    done += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Child::Hear(absl::Time deadline) {
  for (;;) {
    if (const size_t end = heard_.find('\n'); end != std::string::npos) {
      const std::string line = heard_.substr(0, end);
      heard_.erase(0, end + 1);
      return line;
    }
    if (heard_.size() > kMostLine) return absl::OutOfRangeError("its line does not end");
    const absl::Duration left = deadline - SteadyNow();
    if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError("it says nothing");
    pollfd look = {from_, POLLIN, 0};
    // Rounded up: whose deadline it was is asked when it is over.
    const int64_t wait = absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)));
    if (poll(&look, 1, static_cast<int>(std::min<int64_t>(wait, 1000))) <= 0) continue;
    char text[4096];
    const ssize_t count = read(from_, text, sizeof(text));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return absl::OutOfRangeError("it has said all");
    heard_.append(text, static_cast<size_t>(count));
  }
}

void Child::Signal(int signal) {
  if (pid_ != -1) kill(pid_, signal);
}

absl::StatusOr<std::string> Child::Wait(absl::Time deadline) {
  while (pid_ != -1) {
    int status = 0;
    const pid_t ended = waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) {
      pid_ = -1;
      ended_ = HowItEnded(status);
    } else if (ended == -1 && errno != EINTR) {
      return absl::ErrnoToStatus(errno, "waiting for a child");
    } else if (SteadyNow() >= deadline) {
      return absl::DeadlineExceededError("it does not end");
    } else {
      absl::SleepFor(kLook);
    }
  }
  return ended_;
}

std::string OwnPath() {
  char path[4096];
  const ssize_t count = readlink("/proc/self/exe", path, sizeof(path));
  return count > 0 ? std::string(path, static_cast<size_t>(count)) : "gpu_bench";
}

void TakeResult(Child& child, const std::string& name, absl::Time deadline, PartResult& result,
                std::string* missing) {
  for (;;) {
    const absl::StatusOr<std::string> line = child.Hear(deadline);
    if (absl::IsOutOfRange(line.status())) break;
    if (!line.ok()) {
      result.wrong.push_back(absl::StrCat(name, ": ", std::string(line.status().message()),
                                          ": it was ended at its deadline"));
      child.Signal(SIGKILL);
      return;
    }
    if (TakeResultLine(*line, result)) continue;
    if (missing != nullptr && absl::StartsWith(*line, "missing\t")) {
      *missing = line->substr(line->find('\t') + 1);
    } else {
      std::cerr << name << ": " << *line << "\n";
    }
  }
  const absl::StatusOr<std::string> ended = child.Wait(deadline);
  if (!ended.ok()) {
    result.wrong.push_back(absl::StrCat(name, ": ", std::string(ended.status().message())));
    child.Signal(SIGKILL);
  } else if (*ended != kEndedWell) {
    result.wrong.push_back(absl::StrCat(name, ": ended with ", *ended));
  }
}

Orphans::Orphans() { prctl(PR_SET_CHILD_SUBREAPER, 1); }

Orphans::~Orphans() {
  // What one leaves behind is there when it has ended.
  bool all_go = true;
  for (std::vector<pid_t> pids = OwnChildren(); all_go && !pids.empty(); pids = OwnChildren()) {
    for (const pid_t pid : pids) all_go = End(pid) && all_go;
  }
  prctl(PR_SET_CHILD_SUBREAPER, 0);
}

void EndWithParent() { prctl(PR_SET_PDEATHSIG, SIGKILL); }

}  // namespace rempart::benchmarks
