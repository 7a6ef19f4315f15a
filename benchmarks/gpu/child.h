// SPDX-License-Identifier: Apache-2.0
// Another process that a part of benchmarks/gpu/run starts and watches: most often this program
// again, as a rank of a group. What a child says goes to a pipe, line by line; what it is told
// comes by another. Its standard error is this process's.
//
// Every wait has a deadline, and no child outlives its owner, but one that the system does not let
// go though it was killed. One thread uses a Child.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/result.h"

namespace rempart::benchmarks {

class Child {
 public:
  // words[0] is a path, or a name to be found on PATH; `environment` has more entries NAME=value.
  static absl::StatusOr<std::unique_ptr<Child>> Start(const std::vector<std::string>& words,
                                                      const std::vector<std::string>& environment);
  ~Child();  // ends it, whatever it does
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  absl::Status Tell(const std::string& line);
  // The next line that it says. DeadlineExceeded; OutOfRange when it has said all.
  absl::StatusOr<std::string> Hear(absl::Time deadline);
  void Signal(int signal);
  // How it ended: "exit status 3" or "signal 9". DeadlineExceeded while it runs.
  absl::StatusOr<std::string> Wait(absl::Time deadline);

 private:
  Child(pid_t pid, int to, int from) : pid_(pid), to_(to), from_(from) {}

  pid_t pid_;  // -1: it has ended
  std::string ended_;
  const int to_, from_;
  std::string heard_;  // not yet a line
};

inline constexpr char kEndedWell[] = "exit status 0";

// The path of this program.
std::string OwnPath();

// Takes all that the child says as a part's result, and requires that it ends well by the deadline;
// whatever else happens is wrong, under `name`. A line "missing", tab, what, goes to `missing`,
// where that is wanted; others that are no result go to standard error.
void TakeResult(Child& child, const std::string& name, absl::Time deadline, PartResult& result,
                std::string* missing = nullptr);

// Processes that children leave behind become this one's while it is there, and are ended with it.
// No Child outlives it.
class Orphans {
 public:
  Orphans();
  ~Orphans();
  Orphans(const Orphans&) = delete;
  Orphans& operator=(const Orphans&) = delete;
};

// For the child: it ends when its parent does.
void EndWithParent();

}  // namespace rempart::benchmarks
