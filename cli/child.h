// SPDX-License-Identifier: Apache-2.0
// One child process that shall run: started, watched, started again with growing pauses. It dies
// with its parent. Called by one thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace rempart::cli {

class Child {
 public:
  // Both streams of the process go to the end of `log_path`. `environment` ("NAME=value") is added
  // to this process's own.
  Child(std::string name, std::vector<std::string> command, std::string log_path,
        std::vector<std::string> environment = {})
      : name_(std::move(name)),
        command_(std::move(command)),
        log_path_(std::move(log_path)),
        environment_(std::move(environment)) {}
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  const std::string& name() const { return name_; }
  bool running() const { return pid_ > 0; }
  absl::Time started() const { return started_; }

  absl::Status Start(absl::Time now);
  // How the process ended ("exit status 3", "signal 9"), once, if it has since the last call.
  struct Ending {
    int exit_status = -1;  // -1: a signal
    std::string words;
    absl::Duration pause;  // until it is due again
  };
  std::optional<Ending> Poll(absl::Time now);
  bool IsDue(absl::Time now) const { return !running() && now >= next_start_; }

  void Signal(int signal);
  // The last lines that it wrote since it was started.
  std::string LastWords() const;

 private:
  const std::string name_;
  const std::vector<std::string> command_;
  const std::string log_path_;
  const std::vector<std::string> environment_;
  pid_t pid_ = 0;
  off_t log_begin_ = 0;  // where this start's words begin
  absl::Time started_ = absl::InfinitePast();
  absl::Time next_start_ = absl::InfinitePast();
  absl::Duration pause_ = absl::ZeroDuration();
};

}  // namespace rempart::cli
