// SPDX-License-Identifier: Apache-2.0
#include "cli/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace rempart::cli {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(500);
constexpr absl::Duration kMaxPause = absl::Seconds(30);
// A process that ran this long starts again after the first pause.
constexpr absl::Duration kHealthyTime = absl::Seconds(60);
constexpr size_t kLastWordsBytes = 2000;
constexpr int kNotStarted = 127;

// In the child, between fork and exec: async-signal-safe calls only.
[[noreturn]] void Exec(char* const* arguments, char* const* environment, int log, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kNotStarted);
  setpgid(0, 0);  // Ctrl-C goes to the parent alone, which ends its children in order
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  execve(arguments[0], arguments, environment);
  _exit(kNotStarted);
}

}  // namespace

Child::~Child() {
  if (!running()) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

absl::Status Child::Start(absl::Time now) {
  std::vector<char*> arguments;
  for (const std::string& word : command_) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  std::vector<char*> environment;
  for (char** word = environ; *word != nullptr; ++word) environment.push_back(*word);
  for (const std::string& word : environment_) {
    environment.push_back(const_cast<char*>(word.c_str()));
  }
  environment.push_back(nullptr);
  if (access(arguments[0], X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("cannot run ", command_[0], ": ", std::strerror(errno)));
  }
  const int log = open(log_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log < 0) {
    return absl::InternalError(
        absl::StrCat("cannot write ", log_path_, ": ", std::strerror(errno)));
  }
  log_begin_ = lseek(log, 0, SEEK_END);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) Exec(arguments.data(), environment.data(), log, parent);
  const int error = errno;
  close(log);
  if (pid < 0) {
    return absl::InternalError(absl::StrCat("cannot start ", name_, ": ", std::strerror(error)));
  }
  pid_ = pid;
  started_ = now;
  return absl::OkStatus();
}

std::optional<Child::Ending> Child::Poll(absl::Time now) {
  int status = 0;
  if (!running() || waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = 0;
  if (now - started_ > kHealthyTime) pause_ = absl::ZeroDuration();
  pause_ = std::clamp(pause_ * 2, kFirstPause, kMaxPause);
  next_start_ = now + pause_;
  Ending ending;
  ending.pause = pause_;
  if (WIFEXITED(status)) {
    ending.exit_status = WEXITSTATUS(status);
    ending.words = absl::StrCat("exit status ", ending.exit_status);
  } else {
    ending.words = absl::StrCat("signal ", WTERMSIG(status), ", ", strsignal(WTERMSIG(status)));
  }
  return ending;
}

void Child::Signal(int signal) {
  if (running()) kill(pid_, signal);
}

std::string Child::LastWords() const {
  std::ifstream file(log_path_, std::ios::binary);
  file.seekg(log_begin_);
  std::ostringstream all;
  all << file.rdbuf();
  std::string text = all.str();
  if (text.size() > kLastWordsBytes) {
    text = text.substr(text.size() - kLastWordsBytes);
    text.erase(0, text.find('\n') + 1);
  }
  return text;
}

}  // namespace rempart::cli
