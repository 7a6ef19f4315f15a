// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/course.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

constexpr char kNotRunMark[] = "rempart.gpu_bench.not_run";
constexpr char kCutShortMark[] = "rempart.gpu_bench.cut_short";

std::string Rounded(double value) { return absl::StrFormat("%.4g", value); }

void TakeLine(const std::string& line, Outcome& outcome, bool& is_complete) {
  if (TakeResultLine(line, outcome.result)) return;
  const std::vector<std::string> fields = absl::StrSplit(line, '\t');
  if (fields[0] == "not_run" && fields.size() == 2) {
    outcome.not_run = fields[1];
  } else if (fields[0] == "seconds" && fields.size() == 2 &&
             absl::SimpleAtod(fields[1], &outcome.seconds)) {
    is_complete = true;  // the last line
  }
}

Outcome Try(const Part& part, const std::function<absl::Time()>& now) {
  const absl::Time start = now();
  Outcome outcome;
  absl::StatusOr<PartResult> result = part.run();
  if (result.ok()) {
    outcome.result = *std::move(result);
  } else if (IsNotRun(result.status())) {
    outcome.not_run = std::string(result.status().message());
  } else {
    outcome.is_cut_short = result.status().GetPayload(kCutShortMark).has_value();
    outcome.error = std::string(result.status().message());
  }
  outcome.seconds = absl::ToDoubleSeconds(now() - start);
  return outcome;
}

}  // namespace

absl::Status NotRun(absl::string_view why) {
  absl::Status status = absl::FailedPreconditionError(why);
  status.SetPayload(kNotRunMark, absl::Cord(""));
  return status;
}

bool IsNotRun(const absl::Status& status) { return status.GetPayload(kNotRunMark).has_value(); }

absl::Status CutShort(absl::string_view why) {
  absl::Status status = absl::DeadlineExceededError(why);
  status.SetPayload(kCutShortMark, absl::Cord(""));
  return status;
}

OutcomeStore::OutcomeStore(std::string folder, std::string key)
    : folder_(std::move(folder)), key_(OneField(key)) {}

std::string OutcomeStore::PathOf(const Part& part) const {
  return absl::StrCat(folder_, "/", part.name, ".tsv");
}

std::string OutcomeStore::KeyLine(const Part& part) const {
  return absl::StrCat("key\t", key_, part.input.empty() ? "" : " ", OneField(part.input));
}

std::optional<Outcome> OutcomeStore::Load(const Part& part) const {
  std::ifstream file(PathOf(part));
  if (!file) return std::nullopt;
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  if (lines.empty() || lines[0] != KeyLine(part)) return std::nullopt;
  Outcome outcome;
  bool is_complete = false;
  for (const std::string& line : lines) {
    TakeLine(line, outcome, is_complete);
  }
  if (!is_complete) return std::nullopt;
  return outcome;
}

absl::Status OutcomeStore::Save(const Part& part, const Outcome& outcome) const {
  std::string text = absl::StrCat(KeyLine(part), "\n", ResultLines(outcome.result));
  if (!outcome.not_run.empty()) {
    absl::StrAppend(&text, "not_run\t", OneField(outcome.not_run), "\n");
  }
  absl::StrAppend(&text, "seconds\t", outcome.seconds, "\n");
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  const std::string path = PathOf(part);
  std::ofstream(path + ".new") << text;
  std::filesystem::rename(path + ".new", path, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot write ", path, ": ", error.message(), "; choose another folder: --out"));
}

void OutcomeStore::Forget(const Part& part) const {
  std::error_code error;
  std::filesystem::remove(PathOf(part), error);
}

absl::StatusOr<Ending> RunCourse(const std::vector<Part>& parts, const OutcomeStore& store,
                                 absl::Duration budget, const std::function<absl::Time()>& now,
                                 const std::function<void(const std::string&)>& say) {
  const absl::Time end = now() + budget;
  bool is_good = true;
  for (const Part& part : parts) {
    const std::optional<Outcome> kept = store.Load(part);
    if (kept.has_value() && kept->not_run.empty()) {
      is_good &= kept->is_good();
      say(absl::StrCat(part.name, ": kept from an earlier run"));
      continue;
    }
    if (budget < part.usual) {  // no run of these flags would ever begin it
      is_good = false;
      say(absl::StrCat(part.name, ": not run: takes ", absl::FormatDuration(part.usual),
                       ", more than --minutes has: give it more"));
      continue;
    }
    if (end - now() < part.usual) {
      say(absl::StrCat(part.name, ": takes ", absl::FormatDuration(part.usual),
                       ", and less is left of --minutes; run the same again to go on"));
      return Ending::kOutOfTime;
    }
    const Outcome outcome = Try(part, now);
    if (!outcome.error.empty()) {
      say(absl::StrCat(part.name, ": ", outcome.error));
      return outcome.is_cut_short ? Ending::kOutOfTime : Ending::kBad;
    }
    RETURN_IF_ERROR(store.Save(part, outcome));
    is_good &= outcome.is_good();
    if (!outcome.not_run.empty()) {
      say(absl::StrCat(part.name, ": not run: ", outcome.not_run));
      continue;
    }
    say(absl::StrCat(part.name, ": ", outcome.is_good() ? "done" : "WRONG", " in ",
                     Rounded(outcome.seconds), " s"));
    for (const std::string& wrong : outcome.result.wrong) say(absl::StrCat("  ", wrong));
  }
  return is_good ? Ending::kComplete : Ending::kBad;
}

std::string Report(const std::vector<Part>& parts, const OutcomeStore& store,
                   const std::string& title) {
  std::string text = absl::StrCat("# ", title, "\n");
  for (const Part& part : parts) {
    absl::StrAppend(&text, "\n## ", part.name, "\n\n", part.about, "\n\n");
    const std::optional<Outcome> kept = store.Load(part);
    if (!kept.has_value()) {
      absl::StrAppend(&text, "Has not run.\n");
      continue;
    }
    if (!kept->not_run.empty()) {
      absl::StrAppend(&text, "**Not run:** ", kept->not_run, "\n");
      continue;
    }
    absl::StrAppend(&text, kept->is_good() ? "Good" : "**Wrong**", ", in ", Rounded(kept->seconds),
                    " s.\n\n| figure | value | unit |\n|---|---|---|\n");
    for (const Figure& figure : kept->result.figures) {
      absl::StrAppend(&text, "| ", figure.name, " | ", Rounded(figure.value), " | ", figure.unit,
                      " |\n");
    }
    for (const std::string& note : kept->result.notes) absl::StrAppend(&text, "\n- ", note);
    for (const std::string& wrong : kept->result.wrong) {
      absl::StrAppend(&text, "\n- wrong: ", wrong);
    }
    if (!kept->result.notes.empty() || !kept->result.wrong.empty()) absl::StrAppend(&text, "\n");
  }
  return text;
}

}  // namespace rempart::benchmarks
