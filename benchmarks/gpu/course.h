// SPDX-License-Identifier: Apache-2.0
// The course of benchmarks/gpu/run: parts one after the other within a budget of time, each kept in
// a file as soon as it is done, so that a run that was cut short goes on where it was; and the
// report of all that is kept.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/result.h"

namespace rempart::benchmarks {

// Where a part runs: a GPU's errors stay with the process that met them.
enum class PartProcess { kThis, kItsOwn };

struct Part {
  std::string name;
  std::string about;
  absl::Duration usual;  // it does not begin with less time left
  std::function<absl::StatusOr<PartResult>()> run;
  PartProcess process = PartProcess::kThis;  // of whoever makes `run`
  // What it is computed with beside this program: a file, a library. Of another it is not kept.
  std::string input = {};
};

// The error of a part that needs something which this machine lacks: a library, a tool, memory. The
// message says what. Nothing is wrong with the GPU, so the other parts run.
absl::Status NotRun(absl::string_view why);
bool IsNotRun(const absl::Status& status);

// The error of a part that was ended because the run's time was over.
absl::Status CutShort(absl::string_view why);

// Of a part that has run, to its end or to an error.
struct Outcome {
  PartResult result;
  std::string not_run;        // why; empty: it has run
  std::string error;          // empty: none
  bool is_cut_short = false;  // that is the error
  double seconds = 0;

  bool is_good() const { return not_run.empty() && error.empty() && result.wrong.empty(); }
};

// One file for each part in a folder. What was kept under another key (of another GPU or another
// version), or of another Part::input, is not there.
class OutcomeStore {
 public:
  OutcomeStore(std::string folder, std::string key);
  std::optional<Outcome> Load(const Part& part) const;
  absl::Status Save(const Part& part, const Outcome& outcome) const;
  void Forget(const Part& part) const;

 private:
  std::string PathOf(const Part& part) const;
  std::string KeyLine(const Part& part) const;

  const std::string folder_;
  const std::string key_;
};

enum class Ending {
  kComplete,   // every part is there and good
  kBad,        // every part that could run has; something is wrong, or could not run
  kOutOfTime,  // another run goes on
};

// Runs what is not kept yet. `now` is a clock; `say` gets a line for each part. A part that ended
// with an error is not kept: it is tried again in the next run. After such an error nothing more
// runs: what it was is not known. Of one that could not run the reason is kept for the report, and
// it is tried again, too. One that takes longer than all of `budget` does not run, and the others
// do.
absl::StatusOr<Ending> RunCourse(const std::vector<Part>& parts, const OutcomeStore& store,
                                 absl::Duration budget, const std::function<absl::Time()>& now,
                                 const std::function<void(const std::string&)>& say);

// Markdown. Parts that have not run are named as such.
std::string Report(const std::vector<Part>& parts, const OutcomeStore& store,
                   const std::string& title);

}  // namespace rempart::benchmarks
